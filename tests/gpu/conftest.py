"""The GPU of the tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from danqing.engine.core.device import Device, open_device
from danqing.engine.core.errors import DanqingError


@pytest.fixture(scope="session")
def gpu() -> Iterator[Device]:
    """The first GPU. Without one, the tests are skipped with the reason."""
    try:
        with open_device("cuda", threads=4) as device:
            yield device
    except DanqingError as problem:
        pytest.skip(str(problem))
