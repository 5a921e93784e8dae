from __future__ import annotations

from collections.abc import Iterator

import pytest

from danqing.engine.core.device import Device, open_device
from danqing.engine.core.errors import DanqingError


@pytest.fixture(scope="session")
def gpu() -> Iterator[Device]:
    """The first GPU; tests that need one are skipped where there is none, and say why."""
    try:
        with open_device("cuda", threads=4) as device:
            yield device
    except DanqingError as problem:
        pytest.skip(str(problem))
