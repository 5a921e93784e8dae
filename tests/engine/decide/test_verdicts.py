"""DECIDE over runs made of tables: who stays of a group, whose scores are used, and what was decided before."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import danqing.engine.decide.verdicts
from danqing.engine.cli.main import main
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.decide.contents import check_current
from danqing.engine.decide.dedup import groups
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.index import Tiles
from danqing.engine.decide.funnel import Funnel
from danqing.engine.decide.merging import merge
from danqing.engine.decide.reference import with_references
from danqing.engine.decide.scores import read_scores
from danqing.engine.decide.verdicts import decide
from danqing.engine.phases import write_run
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.folder import Run
from tests.engine.decide.runs import make_run, on_circle, verdicts_of

RECIPE = """
recipe: r
models: {image_embedding: efficientnet-lite0-conse}
criteria:
  words: {min: 2}
  redundancy: {within: 0.01, prefer: survivors}
  unsafe_image: {max: 0.5}
  alignment_distance: {max: 1.2}
"""
"""Rows 8 degrees apart are joined, rows 9 degrees apart are not."""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of(tmp_path, RECIPE)


def recipe_of(folder: Path, text: str, *settings: str) -> Recipe:
    (folder / "r.yaml").write_text(text)
    return load_recipe(folder / "r.yaml", settings)


def columns(rows: int, **given: list[Any]) -> dict[str, list[Any]]:
    return {"words": [5] * rows, "unsafe_image": [0.1] * rows, "alignment_distance": [1.0] * rows} | given


def shown(run: Run) -> list[tuple[str | None, int, int | None]]:
    """Of every row: `dropped_by`, `group`, and the number of the row that is kept instead."""
    return [
        (v["dropped_by"], v["group"], None if v["kept_instead"] is None else int(v["kept_instead"], 16) - 1)
        for v in verdicts_of(run)
    ]


def test_a_member_that_passes_later_criteria_represents_its_group(
    recipe: Recipe, device: Device, tmp_path: Path
) -> None:
    features = on_circle(0, 2, 4, 6, 90, 180)
    given = columns(6, alignment_distance=[1.3, 1.3, 1.3, 1.1, 1.3, 1.0], unsafe_image=[0.1, 0.1, 0.9, 0.1, 0.1, 0.1])
    run = make_run(tmp_path / "run", recipe, features, given, [2, 4])
    assert decide(run, recipe, device).kept == 2
    near = ("redundancy", 0, 3)
    assert shown(run) == [near, near, near, (None, 0, None), ("alignment_distance", -1, None), (None, -1, None)]
    distances = [row["distance"] for row in verdicts_of(run)]
    assert distances[0] == pytest.approx(1 - np.cos(np.deg2rad(6)), abs=1e-4) and distances[3] is None
    paper = recipe_of(tmp_path, RECIPE.replace(", prefer: survivors", ""))
    assert decide(run, paper, device).kept == 1
    near = ("redundancy", 0, 1)
    assert shown(run)[:4] == [near, ("alignment_distance", 0, None), near, near]


def test_groups_that_a_survivor_saves_are_counted_and_explained(
    recipe: Recipe, device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = RECIPE.replace("prefer: survivors", "keep: first, prefer: survivors, max_diameter: 0.009")
    first = recipe_of(tmp_path, text)
    # Groups: two saved, one with two survivors, one without any, one whose member leaves it and is saved from nothing.
    given = columns(11, alignment_distance=[1.3, 1.0, 1.3, 1.0, 1.0, 1.3, 1.3, 1.3, 1.0, 1.0, 1.3])
    run = make_run(tmp_path / "run", first, on_circle(0, 2, 20, 22, 40, 42, 60, 62, 91, 99, 107), given, [4, 7])
    funnel = decide(run, first, device)
    assert [line.saved for line in funnel.lines] == [None, 2, None, None] and funnel == Funnel.of(run)
    assert funnel.lines[1].measured_rule.endswith("survivors preferred (groups saved: 2)")
    assert pq.read_table(run.folder / "saved.parquet").to_pylist() == [
        {"group": 0, "uid": f"{1:032x}"}, {"group": 1, "uid": f"{3:032x}"}
    ]  # fmt: skip
    for key, words in (("run3", "00000 key run2, uid"), ("run2", "this pair"), ("run4", "")):
        assert main(["explain", str(run.folder), key]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert (f"without prefer: survivors, {words}" in printed) == bool(words)
    paper = decide(run, recipe_of(tmp_path, text.replace("prefer: survivors,", "")), device)
    assert paper.lines[1].saved is None and not (run.folder / "saved.parquet").exists()
    assert "saved" not in paper.lines[1].to_dict()


def test_without_a_survivor_the_papers_representative_is_chosen(recipe: Recipe, device: Device, tmp_path: Path) -> None:
    given = columns(4, alignment_distance=[1.3, 1.3, 1.3, 1.0])
    run = make_run(tmp_path / "run", recipe, on_circle(0, 2, 4, 90), given)
    decide(run, recipe, device)
    preferring = verdicts_of(run)
    decide(run, recipe_of(tmp_path, RECIPE.replace(", prefer: survivors", "")), device)
    assert verdicts_of(run) == preferring and shown(run)[1] == ("alignment_distance", 0, None)


def test_survivors_pass_reference_runs_and_may_fail_a_later_group_criterion(
    device: Device, recipe: Recipe, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", recipe, on_circle(11), columns(1), first_uid=1000)
    decide(other, recipe, device)
    run = make_run(tmp_path / "run", recipe, on_circle(0, 4, 8, 14), columns(4))
    both = with_references(recipe, [other.folder])
    assert decide(run, both, device).kept == 1  # one group by chains; all but row 0 are near the other run
    assert shown(run) == [(None, 0, None), ("redundancy", 0, 0), ("redundancy", 0, 0), ("redundancy", 0, 0)]
    text = RECIPE.replace("within: 0.01", "within: 0.003") + "  again: {within: 0.02, keep: first}\n"
    decide(run, recipe_of(tmp_path, text), device)  # row 3 is compared with row 1 by `again`
    assert [row[0] for row in shown(run)] == ["redundancy", None, "redundancy", "again"]


def test_members_that_leave_a_group_choose_among_their_own_survivors(device: Device, tmp_path: Path) -> None:
    text = RECIPE.replace("within: 0.01,", "within: 0.01, keep: first, max_diameter: 0.012,")
    recipe = recipe_of(tmp_path, text)
    given = columns(6, alignment_distance=[1.3, 1.0, 1.0, 1.3, 1.0, 1.3])
    run = make_run(tmp_path / "run", recipe, on_circle(0, 7, 14, 21, 28, 35), given)
    decide(run, recipe, device)
    assert shown(run) == [
        ("redundancy", 0, 1), (None, 0, None), ("redundancy", 0, 1), ("redundancy", 1, 4), (None, 1, None),
        ("redundancy", 1, 4),
    ]  # fmt: skip


def test_a_row_that_left_its_group_has_no_group(device: Device, tmp_path: Path) -> None:
    text = RECIPE.replace("within: 0.01,", 'within: 0.01, "keep": "highest:words", max_diameter: 0.012,')
    recipe = recipe_of(tmp_path, text)
    run = make_run(tmp_path / "run", recipe, on_circle(0, 7, 14, 21), columns(4, words=[5, 5, 6, 9]))
    decide(run, recipe, device)
    assert shown(run) == [
        (None, 0, None), ("redundancy", 0, 0), ("redundancy", 1, 3), (None, 1, None)
    ]  # fmt: skip


def test_survivors_are_preferred_among_equal_values_and_the_highest(device: Device, tmp_path: Path) -> None:
    text = RECIPE.replace("within: 0.01,", 'column: sha256, within: 0, "keep": "highest:words",')
    recipe = recipe_of(tmp_path, text)
    given = columns(5, words=[9, 7, 8, 5, 6], unsafe_image=[0.9, 0.1, 0.1, 0.1, 0.9]) | {"sha256": list("aaabb")}
    run = make_run(tmp_path / "run", recipe, on_circle(*range(0, 100, 20)), given)
    decide(run, recipe, device)
    assert shown(run) == [
        ("redundancy", 0, 2), ("redundancy", 0, 2), (None, 0, None), (None, 1, None), ("redundancy", 1, 3)
    ]  # fmt: skip
    assert "highest words is kept, survivors preferred" in recipe.criteria[1].rule


def test_a_member_without_a_score_is_no_survivor_but_one_that_a_gate_stopped_is_refused(
    recipe: Recipe, device: Device, tmp_path: Path
) -> None:
    given = columns(3, alignment_distance=[None, 1.0, None], unsafe_image=[0.1, 0.1, 0.9])
    given |= {"error": ["broken", None, None], "gated_at": [None, None, "text embedding"]}
    run = make_run(tmp_path / "run", recipe, on_circle(0, 1, 2), given)
    decide(run, recipe, device)
    assert [row[0] for row in shown(run)] == ["redundancy", None, "redundancy"]
    looser = recipe_of(tmp_path, RECIPE, "unsafe_image.max=0.95")
    with pytest.raises(DanqingError, match=r"1 pairs have no score for 'alignment_distance'.*'text embedding'"):
        decide(run, looser, device)


def test_explain_says_who_was_not_compared(
    recipe: Recipe, device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", recipe, on_circle(0, 1, 90, 180), columns(4, words=[5, 5, 5, 1]))
    decide(run, recipe, device)
    for row, group in enumerate(("group 0", "group 0", "no group", "not compared")):
        assert main(["explain", str(run.folder), f"run{row}"]) == 0
        assert group in capsys.readouterr().out


def test_a_row_that_no_stage_gave_a_score_does_not_block_the_run(
    recipe: Recipe, device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "run", recipe, on_circle(0, 90), columns(2, unsafe_image=[None, 0.1]))
    with caplog.at_level("WARNING", "danqing"):
        assert decide(run, recipe, device).kept == 1
    assert shown(run)[0][0] == "unsafe_image" and "1 pairs reached the stage of unsafe_image" in caplog.text


def test_a_decision_that_was_interrupted_leaves_no_verdicts(
    recipe: Recipe, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", recipe, on_circle(0, 90, 180), columns(3, words=[5, 5, 3]), [2, 1])
    decide(run, recipe, device)
    run.note("written", kept=3)
    before = [run.verdicts_path(number).read_bytes() for number in (0, 1)]
    calls = []

    def stop_at_the_second(path: Path) -> Any:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return danqing.engine.core.files.commit(path)

    stricter = recipe_of(tmp_path, RECIPE, "words.min=6")
    with monkeypatch.context() as broken:
        broken.setattr(danqing.engine.decide.verdicts, "commit", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            decide(run, stricter, device)
    left = Run.open(run.folder)
    assert run.verdicts_path(0).read_bytes() != before[0] and run.verdicts_path(1).read_bytes() == before[1]
    assert "decided" not in left.manifest and "written" not in left.manifest
    with pytest.raises(DanqingError, match="run `danqing decide"):
        check_current(left)
    assert decide(left, recipe, device).kept == 3  # not taken for decided, though it once was with this recipe
    assert [run.verdicts_path(number).read_bytes() for number in (0, 1)] == before


def test_verdicts_that_were_lost_are_made_again(recipe: Recipe, device: Device, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", recipe, on_circle(0, 90), columns(2), [1, 1])
    decide(run, recipe, device)
    for file in (run.verdicts_path(1), run.folder / "funnel.json"):
        content = file.read_bytes()
        file.unlink()
        decide(run, recipe, device)
        assert file.read_bytes() == content


def test_a_recipe_of_other_models_is_refused(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", recipe, on_circle(0, 90), columns(2))
    other = tmp_path / "other.yaml"
    other.write_text(RECIPE.replace("efficientnet-lite0-conse", "chinese-clip-vit-l-14-image"))
    command = ["decide", str(run.folder), "--recipe", str(other), "--device", "cpu", "--quiet"]
    assert main(command) == 2
    said = capsys.readouterr().err
    card = run.manifest["models"]["image_embedding"]["card"][:8]
    assert f"scored with efficientnet-lite0-conse (card {card}), the recipe names chinese-clip-vit-l-14-image" in said
    assert "--force" in said and "decided" not in Run.open(run.folder).manifest
    assert main(["decide", str(run.folder), "--set", "models.image_embedding=nothing", "--quiet"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    decided = Run.open(run.folder).manifest["decided"]
    assert decided["recipe"]["models"] == {"image_embedding": "efficientnet-lite0-conse"}
    assert "chinese-clip" not in json.dumps(Run.open(run.folder).manifest)


def test_a_model_that_was_changed_under_its_name_is_refused(recipe: Recipe, device: Device, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", recipe, on_circle(0, 90), columns(2))
    run.manifest["models"]["image_embedding"]["card"] = "0" * 64
    with pytest.raises(DanqingError, match=r"card 00000000\), the recipe names efficientnet-lite0-conse"):
        decide(run, recipe, device)
    assert decide(run, recipe, device, force=True).kept == 2


class Listener:
    """Collects what a phase says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def expect(self, rows: int, size: int) -> None: ...

    def advance(self, rows: int) -> None: ...

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_scores_and_reference_runs_that_change_are_decided_again(
    recipe: Recipe, device: Device, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", recipe, on_circle(0), columns(1), first_uid=1000)
    decide(other, recipe, device)
    both = with_references(recipe, [other.folder])
    run = make_run(tmp_path / "run", recipe, on_circle(0, 90), columns(2))
    said = Listener()
    assert decide(run, both, device, said).kept == 1
    assert decide(run, both, device, said).kept == 1 and said.lines == []
    make_run(other.folder, recipe, on_circle(90), columns(1), first_uid=2000)  # other data, the same recipe
    decide(Run.open(other.folder), recipe, device)
    assert decide(run, both, device, said).kept == 1 and [row[0] for row in shown(run)] == [None, "already_kept"]
    assert said.lines.pop() == f"{other.folder} was scored or decided again since the last decision; deciding again"
    decide(Run.open(other.folder), recipe_of(tmp_path, RECIPE, "words.min=9"), device)  # keeps nothing now
    assert decide(run, both, device, said).kept == 2 and len(said.lines) == 1
    make_run(tmp_path / "new", recipe, on_circle(0, 90), columns(2, words=[1, 5]))
    shutil.copy(tmp_path / "new/scores/00000.parquet", run.scores_path(0))
    with pytest.raises(
        DanqingError, match=f"scores changed since they were decided; run `danqing decide {run.folder}`"
    ):
        write_run(run)
    assert decide(run, both, device, said).kept == 1
    assert said.lines[1:] == ["the scores changed since the last decision; deciding again"]


@pytest.fixture
def batches(recipe: Recipe, device: Device, tmp_path: Path) -> list[Path]:
    """Two decided runs, each with a group of its own."""
    folders = [tmp_path / "batch0", tmp_path / "batch1"]
    for number, folder in enumerate(folders):
        features = on_circle(*(angle + 90 * number for angle in (0, 1, 40, 41)))
        decide(make_run(folder, recipe, features, columns(4), first_uid=1 + 4 * number), recipe, device)
    return folders


def test_groups_of_merged_runs_stay_apart(batches: list[Path], device: Device, tmp_path: Path) -> None:
    run, funnel = merge(batches, tmp_path / "all", device)
    assert funnel.kept == 4
    assert [row[1] for row in shown(run)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [row[2] for row in shown(run)] == [None, 0, None, 2, None, 4, None, 6]


def test_a_merge_takes_each_run_once(
    batches: list[Path], device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(batches[0])
    for other in (batches[0], batches[0] / ".." / "batch0", tmp_path / "link"):
        assert main(["merge", str(batches[0]), str(other), "-o", str(tmp_path / "twice"), "--device", "cpu"]) == 2
        assert f"{batches[0]}: given twice; give each run once" in capsys.readouterr().err.replace("\n", "")
    whole, _ = merge(batches, tmp_path / "all", device)
    with pytest.raises(DanqingError, match=f"{batches[1]}: given twice, once as part of the merged run {whole.folder}"):
        merge([batches[1], whole.folder], tmp_path / "twice", device)
    with pytest.raises(DanqingError, match=f"{whole.folder}: one of the runs to merge"):
        merge([whole.folder], whole.folder, device)
    assert not (tmp_path / "twice").exists()


def test_a_merge_notices_runs_that_changed(
    batches: list[Path], recipe: Recipe, device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, said = tmp_path / "all", Listener()
    merge(batches, whole, device, said)
    first = verdicts_of(Run.open(whole))
    (whole / "verdicts" / "00001.parquet").unlink()
    merge(batches, whole, device, said)
    assert verdicts_of(Run.open(whole)) == first and said.lines == []
    # Other data with as many rows and groups: with the old components, rows 0 and 6 would not be compared.
    make_run(batches[0], recipe, on_circle(130, 131, 20, 21), columns(4))
    decide(Run.open(batches[0]), recipe, device)
    assert main(["write", str(whole)]) == 2
    error = capsys.readouterr().err.replace("\n", "")
    assert f"{batches[0]} was scored or decided again since {whole} was merged from it" in error
    assert f"danqing merge {batches[0]} {batches[1]} -o {whole}" in error
    run, _ = merge(batches, whole, device, said)
    assert said.lines == [f"{batches[0]} was scored or decided again since it was merged; comparing all rows again"]
    fresh, _ = merge(batches, tmp_path / "fresh", device)
    assert verdicts_of(run) == verdicts_of(fresh)
    dropped = {row: verdict[0] for row, verdict in enumerate(shown(run)) if verdict[0]}
    assert dropped == dict.fromkeys((1, 3, 5, 7), "redundancy") | {6: "cross_batch_redundancy"}
    shutil.rmtree(batches[1])
    with pytest.raises(DanqingError, match=f"{batches[1]}, which {whole} was merged from, is missing"):
        check_current(run)


@pytest.mark.parametrize(
    "compared",
    [
        "column: sha256, within: 0", "column: words, within: 0", "column: text_clean, within: 0.2",
        "column: perceptual_hash, within: 3", "within: 0.1", "within: 0.1, recall: 0.9",
    ],
)  # fmt: skip
def test_no_row_needs_to_reach_a_group_criterion(device: Device, tmp_path: Path, compared: str) -> None:
    recipe = recipe_of(tmp_path, RECIPE.replace("within: 0.01", f'{compared}, "keep": "highest:words"'), "words.min=9")
    given = columns(2, sha256=["a", "b"], text_clean=["a", "b"], perceptual_hash=np.arange(2, dtype=np.uint64))
    run = make_run(tmp_path / "run", recipe, on_circle(0, 1), given)
    assert decide(run, recipe, device).kept == 0


def test_remote_features_are_not_read_before_they_are_compared(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", recipe, on_circle(0, 2), columns(2))
    run.features_path(0).unlink()
    with pytest.raises(DanqingError, match=r"features.*missing"):
        read_scores(run, recipe)
    monkeypatch.setattr("danqing.engine.decide.scores.RemotePath", Path)
    scores = read_scores(run, recipe)
    with pytest.raises(DanqingError, match=r"features.*missing"):
        scores.columns.features(np.arange(2))


def test_no_file_of_features_stays_open(recipe: Recipe, tmp_path: Path) -> None:
    rows, shards = 400, 40
    features = (np.arange(rows * 2) % 1000).astype(np.float16).reshape(rows, 2)
    run = make_run(tmp_path / "run", recipe, features, columns(rows), [rows // shards] * shards)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    mapped, places = read_scores(run, recipe).columns.features(np.arange(3, rows))
    assert len(list(Path("/proc/self/fd").iterdir())) == opened and len(mapped) == shards
    assert (np.concatenate(mapped) == features).all() and (places == np.arange(3, rows)).all()
    with pytest.MonkeyPatch.context() as fewer:
        fewer.setattr("danqing.engine.decide.feature_files.MAX_MAPPED_FILES", 10)
        few, _ = read_scores(run, recipe).columns.features(np.arange(rows))
        maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(run.folder) in line]
        assert len(maps) == shards + 10 + 1  # those of `mapped`, ten more, and the copy of the others
        assert [*map(np.ndarray.tobytes, few)] == [*map(np.ndarray.tobytes, mapped)]


@pytest.mark.parametrize(
    ("compared", "limit"),
    [("", 16), ("column: sha256, within: 0", 64), ("within: 0.01", 64)],
)
def test_rows_take_little_memory(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: str, limit: int
) -> None:
    """Bytes of a row at the peak: of all rows less those of a tenth, so that what does not grow is not counted.

    The exact search is replaced by one that puts every row in a group of three.
    """

    def join(index: Tiles, features: Features, within: float, parent: np.ndarray, *others: Any) -> None:
        parent -= parent % 3

    monkeypatch.setattr(Tiles, "join", join)
    monkeypatch.setattr(groups, "ROWS_PER_BATCH", 1 << 12)
    text = RECIPE.replace("within: 0.01", compared or "within: 0.01")
    recipe, peaks = recipe_of(tmp_path, text, *([] if compared else ["redundancy=null"])), []
    for rows in (10_000, 10_000, 100_000):  # the first run compiles the kernels
        given = columns(rows) | {"sha256": [f"{row % (rows * 9 // 10):064d}" for row in range(rows)]}
        shards = [5_000] * (rows // 5_000)
        features = np.random.default_rng(1).normal(size=(rows, 4)).astype(np.float16)
        run = make_run(tmp_path / str(len(peaks)), recipe, features, given, shards)
        tracemalloc.start()
        try:
            decide(run, recipe, device)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / 90_000 < limit


def test_the_table_of_a_shard_is_unchanged_by_the_form_of_uids(recipe: Recipe, device: Device, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", recipe, on_circle(0, 1), columns(2))
    decide(run, recipe, device)
    table = pq.read_table(run.verdicts_path(0))
    assert table["kept_instead"].to_pylist() == [None, f"{1:032x}"]
