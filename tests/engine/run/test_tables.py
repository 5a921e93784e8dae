"""Damaged and missing files of a run: each command names the file and the remedy, and the remedy mends the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from danqing.engine.cli.main import main
from danqing.engine.decide.contents import check_current
from danqing.engine.decide.feature_files import map_features
from danqing.engine.phases import curate, decide_run, merge_runs
from danqing.engine.recipe.criteria import Redundancy
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from tests.engine.decide.runs import make_run, on_circle
from tests.engine.score.test_run import crawl

__all__ = ["crawl"]

SCORES, FEATURES, VERDICTS, FUNNEL = (
    "scores/00001.parquet",
    "features/00001.npy",
    "verdicts/00001.parquet",
    "funnel.json",
)
READERS = {
    SCORES: ("decide", "curate", "explain", "report", "diff"),
    FEATURES: ("decide",),
    VERDICTS: ("explain", "report", "write", "diff"),
    FUNNEL: ("report", "write"),
}
"""File → commands that need it."""
MENDERS = {SCORES: "curate", FEATURES: "curate", VERDICTS: "decide", FUNNEL: "decide"}
"""File → command that makes it again."""


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_commands_name_a_damaged_file_and_the_remedy(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, _ = curate(crawl, tmp_path / "out", plain_recipe, Settings())
    shutil.copytree(run.folder, tmp_path / "other")
    out, own = str(run.folder), str(tmp_path / "plain.yaml")
    arguments = {
        "decide": ["decide", out, "--recipe", own, "--set", "words.min=6"],  # other verdicts: the scores are read
        "curate": ["curate", *crawl, "-o", out, "--recipe", own],
        "explain": ["explain", out, "00010"],
        "report": ["report", out],
        "write": ["write", out],
        "diff": ["diff", out, str(tmp_path / "other")],
    }
    for name, commands in READERS.items():
        path = run.folder / name
        content = path.read_bytes()
        remedy = f"run `danqing decide {out}`" if MENDERS[name] == "decide" else "again"
        for damage in (halve, empty, Path.unlink):
            for command in commands:
                path.write_bytes(content)
                damage(path)
                status = main(arguments[command])  # an exception that is not caught fails the test
                error = capsys.readouterr().err.splitlines()[-1]
                if damage is Path.unlink and command == "curate":
                    assert status == 0, (name, error)
                    continue
                case = (name, damage.__name__, command, error)
                assert status == 2 and error.startswith("danqing: "), case
                if damage is Path.unlink and command == "decide":
                    assert "shards have no scores yet" in error, case
                    continue
                assert str(path) in error and remedy in error, case
                assert ("delete it and run" in error) == (damage is not Path.unlink), case
        path.write_bytes(content)
        path.unlink()
        mender = MENDERS[name]
        assert main(["decide", out] if mender == "decide" else arguments["curate"]) == 0, name
        assert path.read_bytes() == content, name
        capsys.readouterr()


def test_deciding_again_replaces_damaged_verdicts(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    run, funnel, _ = curate(crawl, tmp_path / "out", plain_recipe, Settings())
    for name in (VERDICTS, FUNNEL):
        content = (run.folder / name).read_bytes()
        halve(run.folder / name)
        assert decide_run(run, plain_recipe) == funnel
        assert (run.folder / name).read_bytes() == content


def test_a_merged_run_moves_with_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe("near", {"image_embedding": "efficientnet-lite0-conse"}, (Redundancy("redundancy", 0.01),))
    home, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    for number, (folder, angle) in enumerate(((home / "a", 0.0), (home / "b", 40.0), (elsewhere / "c", 80.0))):
        run = make_run(folder, recipe, on_circle(angle, angle + 20), {}, first_uid=1 + 2 * number)
        decide_run(run, recipe)
    merge_runs([home / "a", home / "b"], home / "all")
    merge_runs([home / "a", elsewhere / "c"], home / "far")
    assert (home / "all" / SCORES).readlink() == Path("../../b/scores/00000.parquet")
    assert (home / "far" / SCORES).readlink() == elsewhere / "c" / "scores/00000.parquet"
    moved = home.rename(tmp_path / "moved")
    again = ["merge", str(moved / "a"), str(moved / "b"), "-o", str(moved / "all")]
    for name in ("all", "far"):
        assert Run.open(moved / name).parts[0]["folder"] == str(moved / "a")
    assert Run.open(moved / "all").decide_command == " ".join(["danqing", *again])
    before = (moved / "all" / "chains.npy").stat().st_ino
    merge_runs([moved / "a", moved / "b"], moved / "all")
    assert (moved / "all" / "chains.npy").stat().st_ino == before  # it is that merge already
    check_current(Run.open(moved / "all"))
    for name in ("all", "far"):
        found = Run.open(moved / name)
        assert main(["explain", str(found.folder), "a0"]) == 0
        assert [map_features(found.features_path(number)).shape for number in range(2)] == [(2, 2), (2, 2)]
    capsys.readouterr()
    shutil.rmtree(moved / "a")
    out = str(moved / "all")
    for arguments in (["explain", out, "a0"], ["report", out], ["diff", out, out]):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert f"the folder {moved / 'a'} is missing" in error and error.count("\n") == 1, error
