"""Fixtures of the tests of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from danqing.profiling.bench.published import mend_torchvision
from danqing.trt_models.package_files import cache_folder

mend_torchvision()  # before any test imports transformers


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test, except for the text tables, which take seconds to build."""
    tables = cache_folder() / "tables"
    tables.mkdir(exist_ok=True)
    store = tmp_path / "store"
    store.mkdir()
    (store / "tables").symlink_to(tables)
    monkeypatch.setenv("DANQING_CACHE", str(store))
    return store
