"""Fixtures of the tests of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from danqing.engine.cli.main import main
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.profiling.bench.published import mend_torchvision
from danqing.trt_models.card import Card, load_card
from danqing.trt_models.package_files import cache_folder

mend_torchvision()  # before any test imports transformers


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test, except for text tables and compiled kernels, which take seconds to build."""
    store = tmp_path / "store"
    store.mkdir()
    for name in ("tables", "numba"):
        built = cache_folder() / name
        built.mkdir(exist_ok=True)
        (store / name).symlink_to(built)
    monkeypatch.setenv("DANQING_CACHE", str(store))
    return store


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A published small text classifier."""
    from tests.trt_models.small_models import CAPTION_TEXT, CAPTION_VOCABULARY, bert, publish

    return publish(bert(CAPTION_TEXT, seed=3), tmp_path / "bert", CAPTION_VOCABULARY)


@pytest.fixture
def card(checkpoint: Path, store: Path) -> Card:
    """The card of the classifier, exported to the store."""
    assert main(["models", "export", "text-safety-1m", "--from", str(checkpoint)]) == 0
    return load_card("text-safety-1m")


@pytest.fixture
def recipe(tmp_path: Path, request: pytest.FixtureRequest) -> Recipe:
    """The recipe RECIPE of the test's module, in the file network.yaml."""
    path = tmp_path / "network.yaml"
    path.write_text(request.module.RECIPE)
    return load_recipe(path)
