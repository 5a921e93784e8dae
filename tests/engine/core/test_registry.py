from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.registry import Registry
from danqing.engine.decide.dedup.index import INDEXES
from danqing.engine.sources import SOURCES
from danqing.engine.stages import STAGES, columns_of_role, model_roles
from danqing.engine.write.writing import WRITERS
from danqing.trt_models.runtimes import RUNTIMES


@pytest.fixture
def registry() -> Registry[object]:
    return Registry("danqing.test_parts", {"join": "posixpath:join", "split": "posixpath:split"})


def distribution(folder: Path, entries: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs a package `others` 2.1 with entry points."""
    info = folder / "others-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text(f"[danqing.test_parts]\n{entries}\n")
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()


def test_parts_of_other_packages_follow_the_engines_own(
    registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "dump = json:dumps\nbroken = no_such_module:Part", monkeypatch)
    assert list(registry) == ["join", "split", "broken", "dump"] and len(registry) == 4
    import json
    import posixpath

    assert registry["join"] is posixpath.join and registry.named("dump") is json.dumps
    with pytest.raises(DanqingError, match=r"'broken' of the package others 2\.1 cannot be loaded .*no_such_module"):
        registry["broken"]


def test_a_name_that_two_packages_use_is_refused(
    registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "join = json:dumps", monkeypatch)
    with pytest.raises(DanqingError, match=r"packages danqing-engine and others 2\.1 both have an entry point 'join'"):
        list(registry)


def test_parts_can_be_registered_in_the_process(registry: Registry[object]) -> None:
    registry.register("mine", 1)
    registry.register("mine", 2)
    assert registry["mine"] == 2 and list(registry.values())[-1] == 2
    with pytest.raises(DanqingError, match="'join' is already an entry point"):
        registry.register("join", 3)
    with pytest.raises(DanqingError, match="did you mean 'mine'"):
        registry.named("mien")
    assert "mien" not in registry and registry.get("mien") is None


def test_all_own_parts_load() -> None:
    for parts in (STAGES, SOURCES, WRITERS, RUNTIMES, INDEXES):
        assert all(callable(part) for part in parts.values())


def test_roles_and_the_columns_that_depend_on_their_models() -> None:
    assert model_roles() == {
        "image_embedding", "text_embedding", "image_safety", "aesthetics", "text_safety", "caption_safety",
        "language_model",
    }  # fmt: skip
    assert columns_of_role("image_embedding") == {"image_embedding", "features", "alignment_distance"}
    assert columns_of_role("text_embedding") == {"text_embedding", "alignment_distance"}
    assert columns_of_role("text_safety") == {"unsafe_text"} and columns_of_role("aesthetics") == {"aesthetic"}
