"""The three phases over small shards, with and without neural networks."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import danqing.engine.score.loop
from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.phases import curate, decide_run, score_inputs, write_run
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.score.ledger import Ledger
from danqing.engine.sources import Layout
from tests.conftest import picture

Make = Callable[..., Path]

GOOD = "公园的草地上有一只可爱的小猫在晒太阳"


def samples(start: int, count: int) -> dict[str, bytes | str | dict[str, Any]]:
    members: dict[str, bytes | str | dict[str, Any]] = {}
    for i in range(start, start + count):
        members[f"{i:05d}.jpg"] = picture(i)
        members[f"{i:05d}.txt"] = f"{GOOD}，第{i}张照片"
        members[f"{i:05d}.json"] = {
            "url": f"https://x.example/{i}",
            "width": 7,
            "sha256": "x",
            "note": i if i % 2 else "text",
        }
    return members


@pytest.fixture
def crawl(make_shard: Make) -> list[str]:
    """Three shards; the second has a pair for every kind of failure."""
    second = samples(10, 4) | {
        "short.jpg": picture(90), "short.txt": "小猫",
        "none.txt": GOOD,
        "html.jpg": b"<html>gone</html>", "html.txt": GOOD,
        "cut.jpg": picture(91)[:900], "cut.txt": GOOD,
        "wide.jpg": picture(92, (400, 100)), "wide.txt": GOOD,
    }  # fmt: skip
    shards = [samples(0, 5), second, samples(20, 3)]
    return [str(make_shard(members, f"{number:05d}.tar")) for number, members in enumerate(shards)]


def rows_of(run: Run, kind: str = "scores") -> dict[str, dict[str, Any]]:
    path = {"scores": run.scores_path, "verdicts": run.verdicts_path}[kind]
    return {r["key"]: r for s in run.shards for r in pq.read_table(path(s.number)).to_pylist()}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file whose bytes must not depend on threads, batches or interruptions; a killed run leaves hidden parts."""
    kinds = ("scores", "features", "verdicts", "shards")
    files = [p for kind in kinds for p in sorted((folder / kind).glob("[!.]*"))] + [folder / "kept_uids.npy"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_damage_is_stored_told_and_counted(
    make_shard: Make, plain_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(2):
        make_shard(samples(10 * number, 3), f"in/{number}.tar")
    (folder / "0.tar").write_bytes((folder / "0.tar").read_bytes()[:-12000])
    (folder / "none.tar").write_bytes(b"no tar" * 500)
    (folder / "gone.tar").symlink_to("nothing")
    command = ["score", str(folder), "-o", str(tmp_path / "out"), "--recipe", str(tmp_path / "plain.yaml")]
    for _ in range(2):  # also of a run that is finished
        assert main([*command, "--strict"]) == 3
        printed = capsys.readouterr().out
        assert "Damaged input, 3 places" in printed and "gone.tar: a link to a file that does not exist" in printed
        stored = json.loads((tmp_path / "out" / "damaged.json").read_text())
        assert [Path(entry["file"]).name for entry in stored] == ["gone.tar", "0.tar", "none.tar"]
        assert "cut off" in stored[1]["problem"] and stored[1]["place"].startswith("byte ")
    assert main(command) == 0
    run = Run.open(tmp_path / "out")
    assert [pq.read_metadata(run.scores_path(number)).num_rows for number in range(3)] == [2, 3, 0]
    assert "damaged: " in (tmp_path / "out" / "run.log").read_text()
    shutil.rmtree(tmp_path / "out")
    (folder / "gone.tar").unlink()
    (folder / "none.tar").unlink()
    make_shard(samples(0, 3), "in/0.tar")
    assert main([*command, "--strict"]) == 0 and not (tmp_path / "out" / "damaged.json").exists()


def test_encodings_are_noted(make_shard: Make, plain_recipe: Recipe, tmp_path: Path) -> None:
    path = make_shard({"a.jpg": picture(1), "a.txt": GOOD.encode("gbk"), "b.jpg": picture(2), "b.txt": GOOD})
    run, _ = score_inputs([str(path)], tmp_path / "out", plain_recipe, Settings())
    assert {row["caption"] for row in rows_of(run).values()} == {GOOD}
    assert run.manifest["encodings"] == {"gb18030": 1}
    assert "1 texts read as gb18030" in (tmp_path / "out" / "run.log").read_text()


def test_rows_that_cannot_be_read_have_an_error(make_shard: Make, plain_recipe: Recipe, tmp_path: Path) -> None:
    path = make_shard({"a.jpg": picture(1), "a.txt": GOOD, "b.jpg": picture(2), "b.json": "{", "c.heic": b"x"})
    run, funnel, _ = curate([str(path)], tmp_path / "out", plain_recipe, Settings())
    errors = {key: row["error"] for key, row in rows_of(run).items()}
    assert errors["a"] is None and errors["b"].startswith(".json: not valid JSON") and ".heic" in errors["c"]
    assert funnel.kept == 1


def test_every_row_has_scores_or_a_reason(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    run, funnel, spans = curate(crawl, tmp_path / "out", plain_recipe, Settings())
    scores, verdicts = rows_of(run), rows_of(run, "verdicts")
    assert len(scores) == len(verdicts) == funnel.collected == 17
    dropped = {key: v["dropped_by"] for key, v in verdicts.items() if not v["keep"]}
    assert dropped == {
        "short": "words", "none": "downloaded", "html": "readable", "wide": "aspect_ratio", "cut": "decodable",
    }  # fmt: skip
    assert funnel.kept == 12 and sum(line.dropped for line in funnel.lines) == 5
    assert "an HTML page" in scores["html"]["error"] and "cannot be decoded" in scores["cut"]["error"]
    assert scores["short"]["gated_at"] == "refine" and scores["wide"]["gated_at"] == "decode"
    assert scores["short"]["text_clean"] is None and scores["00011"]["gated_at"] is None
    assert [r["row"] for r in pq.read_table(run.scores_path(1)).to_pylist()] == list(range(9))
    assert spans["caption"].rows == 17 and spans["decode"].rows == 13


def test_the_inputs_fields_are_carried_through(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    run, _ = score_inputs(crawl, tmp_path / "out", plain_recipe, Settings())
    row = rows_of(run)["00011"]
    assert row["url"] == "https://x.example/11" and row["shard"] == "00001"
    assert row["width"] == 160 and row["input_width"] == 7  # ours, and the input's
    assert row["note"] == "11"  # of two types, so as JSON text
    assert row["input_sha256"] == "x" and "sha256" not in row  # a column of ours, though this run does not compute it


def test_kept_pairs_are_written_with_their_original_bytes(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path
) -> None:
    run, funnel, _ = curate(crawl, tmp_path / "out", plain_recipe, Settings())
    with tarfile.open(run.tar_path(0)) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    assert len(members) == 3 * funnel.kept
    assert all(members[f"{i:05d}.jpg"] == picture(i) for i in (*range(5), *range(10, 14), *range(20, 23)))
    assert members["00003.txt"].decode() == f"{GOOD}，第3张照片"
    record = json.loads(members["00003.json"])
    assert record["words"] > 5 and record["url"] == "https://x.example/3" and record["input_width"] == 7
    uids = np.load(run.folder / "kept_uids.npy")
    assert uids.dtype == np.dtype("u8,u8") and len(uids) == funnel.kept
    expected = sorted(v["uid"] for v in rows_of(run, "verdicts").values() if v["keep"])
    assert [f"{int(high):016x}{int(low):016x}" for high, low in uids] == expected
    assert pq.read_metadata(run.table_path(0)).num_rows == funnel.kept
    assert (
        "<svg" in (run.folder / "report.html").read_text()
        and "data:image/jpeg" in (run.folder / "report.html").read_text()
    )


def test_a_finished_run_is_not_changed(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    run, _, _ = curate(crawl, tmp_path / "out", plain_recipe, Settings())
    files = [run.tar_path(0), *(run.scores_path(shard.number) for shard in run.shards)]
    times = {path: path.stat().st_mtime_ns for path in files}
    _, funnel, spans = curate(crawl, tmp_path / "out", plain_recipe, Settings())
    assert not spans and funnel.kept == 12
    assert {p: p.stat().st_mtime_ns for p in times} == times


class StoppedError(Exception):
    """Interrupts a run."""


@pytest.mark.parametrize("after", [1, 6, 14])
def test_an_interrupted_run_is_resumed_with_the_same_bytes(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    curate(crawl, tmp_path / "whole", plain_recipe, Settings())
    monkeypatch.setattr(danqing.engine.score.loop, "READ_ROWS", 2)
    enter, seen = Ledger.enter, 0

    def failing(self: Ledger, batch: Any, gated_at: str | None = None) -> None:
        nonlocal seen
        seen += len(batch)
        if seen >= after:
            raise StoppedError
        enter(self, batch, gated_at)

    with monkeypatch.context() as broken:
        broken.setattr(Ledger, "enter", failing)
        with pytest.raises(StoppedError):
            curate(crawl, tmp_path / "out", plain_recipe, Settings())
    assert not list((tmp_path / "out").rglob("*.part"))
    curate(crawl, tmp_path / "out", plain_recipe, Settings())
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_another_recipe_or_input_is_refused(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score_inputs(crawl, out, plain_recipe, Settings())
    other = load_recipe(tmp_path / "plain.yaml", ["words.max=40"])
    with pytest.raises(DanqingError, match=r"words\.max: 60\.0 there, 40\.0 here"):
        score_inputs(crawl, out, other, Settings())
    with pytest.raises(DanqingError, match="shards: "):
        score_inputs(crawl[:2], out, plain_recipe, Settings())
    with pytest.raises(DanqingError, match="max_pixels: "):
        score_inputs(crawl, out, plain_recipe, Settings(max_pixels=9))
    with pytest.raises(DanqingError, match=r"resizers: .*kernel.* there, .*dali.* here"):
        score_inputs(crawl, out, plain_recipe, Settings(resizer="dali"))
    for same in (Settings(resizer="kernel"), Settings(device="cuda", resizer="kernel")):
        score_inputs(crawl, out, plain_recipe, same)  # everything is scored, so no device is opened
    assert Settings(device="cuda").resizers == ["dali"]
    words = tmp_path / "words.txt"
    words.write_text("橘猫趴 100 n\n")
    with pytest.raises(DanqingError, match="user_dictionaries: "):
        score_inputs(crawl, out, plain_recipe, Settings(user_dictionaries=(words,)))
    for pixels in (8, 9):  # without scores, as a failed start leaves it
        started = Run.create_or_resume(tmp_path / "started", [], plain_recipe, Layout(), {"max_pixels": pixels})
        assert started.manifest["max_pixels"] == pixels
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DanqingError, match="not empty and not a run"):
        score_inputs(crawl, tmp_path / "full", plain_recipe, Settings())


def test_decide_alone_rewrites_verdicts_only(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    run, before, _ = curate(crawl, tmp_path / "out", plain_recipe, Settings())
    scores = {s.number: run.scores_path(s.number).stat().st_mtime_ns for s in run.shards}
    stricter = load_recipe(tmp_path / "plain.yaml", ["words.max=10"])
    after = decide_run(run, stricter)
    assert after.kept < before.kept
    assert {s.number: run.scores_path(s.number).stat().st_mtime_ns for s in run.shards} == scores
    assert write_run(run) == after.kept == 0 and not run.table_path(0).exists()  # no empty shard


def test_a_looser_recipe_is_refused_unless_everything_was_scored(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path
) -> None:
    looser = load_recipe(tmp_path / "plain.yaml", ["words.min=1"])
    gated, _ = score_inputs(crawl, tmp_path / "gated", plain_recipe, Settings())
    with pytest.raises(DanqingError, match=r"1 pairs have no score for 'nouns'.*--score-everything"):
        decide_run(gated, looser)
    everything, _ = score_inputs(crawl, tmp_path / "all", plain_recipe, Settings(score_everything=True))
    assert decide_run(everything, looser).kept == 13
    decide_run(everything, plain_recipe)
    decide_run(gated, plain_recipe)
    assert rows_of(everything, "verdicts") == rows_of(gated, "verdicts")  # gates change no verdict


def test_write_refuses_an_input_that_was_changed(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    run, _ = score_inputs(crawl, tmp_path / "out", plain_recipe, Settings())
    decide_run(run, plain_recipe)
    path = Path(crawl[0])
    path.write_bytes(path.read_bytes().replace("小猫".encode(), "小狗".encode()))
    with pytest.raises(DanqingError, match="was changed since it was scored"):
        write_run(run)


def test_phases_out_of_order_say_what_to_do(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match="`danqing score` starts one"):
        Run.open(tmp_path / "nothing")
    run, _ = score_inputs(crawl, tmp_path / "out", plain_recipe, Settings())
    with pytest.raises(DanqingError, match="run `danqing decide"):
        write_run(run)
    run.scores_path(1).unlink()
    with pytest.raises(DanqingError, match="1 shards have no scores yet"):
        decide_run(run, plain_recipe)


def test_a_shard_may_be_empty(make_shard: Make, plain_recipe: Recipe, tmp_path: Path) -> None:
    shards = [str(make_shard({}, "00000.tar")), str(make_shard(samples(0, 2), "00001.tar"))]
    run, funnel, _ = curate(shards, tmp_path / "out", plain_recipe, Settings())
    assert funnel.kept == 2 and pq.read_metadata(run.scores_path(0)).num_rows == 0


def test_bytes_do_not_depend_on_threads_or_batches(
    make_shard: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all models: a row's scores must not depend on the other rows of a batch."""
    recipe = load_recipe(
        "embedded", ["laplacian_variance.min=1", "alignment_distance.max=2", "alignment_distance.min=0"]
    )
    members = [samples(0, 20), samples(40, 3)]
    for of in members:  # texts of several widths
        of |= {name: str(text) * (1 + len(name + str(text)) % 3) for name, text in of.items() if name.endswith(".txt")}
        of |= {name: str(text)[:12] for name, text in of.items() if name.endswith("7.txt")}
    shards = [str(make_shard(of, f"{number:05d}.tar")) for number, of in enumerate(members)]
    curate(shards, tmp_path / "two", recipe, Settings(threads=2))
    monkeypatch.setattr(danqing.engine.score.loop, "READ_ROWS", 3)
    monkeypatch.setattr("danqing.engine.stages.embed.ImageEmbedding.capacity", 5)
    monkeypatch.setattr("danqing.engine.stages.safety.ImageSafety.capacity", 7)
    monkeypatch.setattr("danqing.engine.stages.embed.TextEmbedding.capacity", 11)
    monkeypatch.setattr("danqing.engine.stages.decode.Decode.capacity", 1.0)
    curate(shards, tmp_path / "one", recipe, Settings(threads=1))
    two, one = tree(tmp_path / "two"), tree(tmp_path / "one")
    assert two.keys() == one.keys() and len(np.load(tmp_path / "two/features/00000.npy")) == 20
    assert [name for name in two if two[name] != one[name]] == []


def test_a_recipe_names_only_the_models_whose_columns_it_reads(crawl: list[str], tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text("recipe: words\ncriteria:\n  words: {min: 5}\n  nouns: {min: 1}\n")
    run, funnel, _ = curate(crawl, tmp_path / "out", load_recipe(path), Settings())
    assert funnel.kept == 16 and "unsafe_text" not in pq.read_schema(run.scores_path(0)).names
    path.write_text("recipe: words\ncriteria:\n  words: {min: 5}\n  unsafe_caption: {max: 0}\n")
    with pytest.raises(DanqingError, match=r"need a model for caption_safety: add models\.caption_safety"):
        score_inputs(crawl, tmp_path / "other", load_recipe(path), Settings())
