"""Resuming with other versions of the engine and of libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import danqing.engine.run.folder
import danqing.engine.select.selection
from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.phases import score_inputs
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.run.versions import CODE, ENGINE, OTHER_VERSIONS, SCORING_VERSIONS, current_versions
from tests.engine.score.test_run import GOOD, crawl

__all__ = ["crawl"]


def install(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Makes other versions those of this process; None: not installed."""
    now = {name: version for name, version in (current_versions() | versions).items() if version is not None}
    monkeypatch.setattr(danqing.engine.run.folder, "current_versions", lambda: now)


def test_the_versions_of_what_computes_scores_are_recorded() -> None:
    versions = current_versions()
    assert {ENGINE, CODE, "python", "unicode", "jieba", "opencc", "onnxruntime", "numba", "pyarrow"} <= versions.keys()
    assert not SCORING_VERSIONS.keys() & set(OTHER_VERSIONS)


def test_a_run_is_resumed_with_other_versions_by_force_only(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    run, _ = score_inputs(crawl, out, plain_recipe, Settings())
    before = run.manifest["versions"]
    install(monkeypatch, jieba="9", numba="9", opencc=None)
    score_inputs(crawl, out, plain_recipe, Settings())  # finished: nothing to compute
    run.scores_path(1).unlink()
    command = ["score", *crawl, "-o", str(out), "--recipe", str(tmp_path / "plain.yaml"), "--quiet"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert f"jieba: {before['jieba']} at the start, 9 now (words and parts of speech)" in message
    assert f"opencc: {before['opencc']} at the start, none now" in message
    assert "numba" not in message and "--force" in message and not run.scores_path(1).exists()
    assert main([*command, "--force"]) == 0
    assert f"numba: {before['numba']} at the start, 9 now" in capsys.readouterr().err
    manifest = Run.open(out).manifest
    (resumed,) = manifest["resumed"]
    assert manifest["versions"] == before and resumed["time"]
    assert resumed["changed"] == {
        "jieba": [before["jieba"], "9"], "numba": [before["numba"], "9"], "opencc": [before["opencc"], None],
    }  # fmt: skip
    run.scores_path(1).unlink()
    score_inputs(crawl, out, plain_recipe, Settings())  # the same versions as at the last start
    install(monkeypatch, jieba="9", numba="10", opencc=None)
    run.scores_path(1).unlink()
    score_inputs(crawl, out, plain_recipe, Settings())  # changes no score: named, not refused
    assert "numba: 9 at the start, 10 now" in capsys.readouterr().err
    assert len(Run.open(out).manifest["resumed"]) == 2


def test_a_run_without_scores_is_started_anew(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_inputs(crawl, tmp_path / "out", plain_recipe, Settings())
    for path in (tmp_path / "out" / "scores").iterdir():
        path.unlink()
    install(monkeypatch, jieba="9")
    run, _ = score_inputs(crawl, tmp_path / "out", plain_recipe, Settings())
    assert run.manifest["versions"]["jieba"] == "9" and "resumed" not in run.manifest


def test_a_selection_is_resumed_with_other_versions_by_force_only(
    plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    table, out = tmp_path / "urls.parquet", tmp_path / "out"
    pq.write_table(pa.table({"url": ["https://x.example/a"] * 3, "caption": [GOOD] * 3}), table)
    monkeypatch.setattr(danqing.engine.select.selection, "PART_ROWS", 2)
    command = ["select", str(table), "-o", str(out), "--recipe", str(tmp_path / "plain.yaml"), "--quiet"]
    assert main(command) == 0
    for path in (out / "funnel.json", out / "verdicts" / "00001.parquet"):
        path.unlink()
    install(monkeypatch, jieba="9")
    assert main(command) == 2
    assert "jieba: " in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert json.loads((out / "select.json").read_text())["resumed"][0]["changed"]["jieba"][1] == "9"


def test_the_message_names_a_change_of_the_code(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = score_inputs(crawl, tmp_path / "out", plain_recipe, Settings())
    run.scores_path(0).unlink()
    install(monkeypatch, **{CODE: "0", ENGINE: "9.0"})
    with pytest.raises(DanqingError, match=rf"{ENGINE}: .* 9\.0 now .*\n  {CODE}: .* 0 now"):
        score_inputs(crawl, tmp_path / "out", plain_recipe, Settings())
