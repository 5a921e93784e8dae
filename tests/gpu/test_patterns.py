"""Matches and hosts on a GPU equal those on the host."""

from __future__ import annotations

import pyarrow as pa
import pytest

from danqing.engine.core import libcudf
from danqing.engine.core.device import Device
from danqing.engine.core.text_column import TextColumn
from danqing.engine.stages.patterns import DeviceCounter, HostCounter, open_counter
from danqing.engine.stages.source import find_blocked
from danqing.kernels.text.hosts import build_domains
from tests.engine.stages.test_patterns import PATTERNS, TEXTS
from tests.engine.stages.test_source import hostile_urls

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("pattern", PATTERNS)
def test_libcudf_counts_like_re2(pattern: str, gpu: Device) -> None:
    if not libcudf.serves(gpu):
        pytest.skip("needs pylibcudf")
    counter, column = open_counter(gpu, pattern), TextColumn.of(TEXTS)
    assert isinstance(counter, DeviceCounter)
    assert counter.count(column).tolist() == HostCounter(gpu, pattern).count(column).tolist()
    assert counter.count(column[7:20]).tolist() == counter.count(column).tolist()[7:20]


def test_hosts_are_blocked_on_a_gpu_as_on_the_host(gpu: Device, device: Device) -> None:
    urls, names = hostile_urls(20_000, 3), ["bad.example", "bad", "com", "127.0.0.1", "0.0.0.1", "example", "[::1]"]
    domains = build_domains(pa.array(sorted(names), pa.large_string()))
    found = find_blocked(gpu, TextColumn.of(urls), domains).tolist()
    assert found == find_blocked(device, TextColumn.of(urls), domains).tolist() and sum(found) > 100
