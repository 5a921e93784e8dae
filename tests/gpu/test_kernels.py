"""Kernels on a GPU are compiled once for all processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from danqing.engine.core.device import Device
from tests.kernels.test_compiled import outcome, start

pytestmark = pytest.mark.gpu

SEARCH = """
import json
import numpy as np
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.groups import near_components
from danqing.engine.core.device import open_device
from danqing.kernels.neighbours import components
from danqing.kernels.neighbours import pairs as neighbours
with open_device("cuda") as device:
    group = near_components(Features(device, [np.eye(300, 64, dtype=np.float16) + np.float16(0.01)]), 0.1)
kernels = components.find_roots, neighbours.fill_scales, neighbours.unpack, neighbours.join_near
stats = [kernel.on_gpu.stats for kernel in kernels]
misses, hits = ([counts.total() for counts in each] for each in zip(*[(s.cache_misses, s.cache_hits) for s in stats]))
print(json.dumps([sum(misses), sum(hits), group.tolist()]))
"""


def test_the_next_process_loads_the_compiled_kernels(gpu: Device, tmp_path: Path) -> None:
    (missed, found, group), again = (outcome(start(tmp_path, script=SEARCH)) for _ in range(2))
    assert missed >= 4 and found == 0
    assert again == [0, missed, group]
    assert any((tmp_path / "cupy").iterdir()) and any((tmp_path / "numba").iterdir())
