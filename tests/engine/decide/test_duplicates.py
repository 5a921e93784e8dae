"""Redundancy from recipe to verdict, on real photographs and features."""

from __future__ import annotations

import io
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from danqing.engine.cli.main import main
from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.decide.dedup import index
from danqing.engine.decide.funnel import Funnel
from danqing.engine.decide.reference import with_references
from danqing.engine.phases import curate, decide_run, merge_runs, write_run
from danqing.engine.recipe.criteria import Exclusion, Redundancy
from danqing.engine.recipe.reading import Recipe, load_recipe, recipe_from_dict
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.stages.base import Context
from danqing.engine.stages.columns import known_columns
from danqing.engine.stages.embed import ImageEmbedding

PHOTOS = sorted((Path(str(resources.files("danqing.engine"))) / "demo" / "photos").glob("*.jpg"))[:6]
CAPTION = "公园的草地上有一只可爱的小猫在晒太阳"
RECIPE = """
recipe: near
models: {image_embedding: efficientnet-lite0-conse}
criteria:
  decodable: {min: 1}
  same_bytes: {column: sha256, within: 0}
  same_look: {column: perceptual_hash, within: 4, "keep": "highest:width"}
  redundancy: {within: 0.05, keep: first}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "near.yaml"
    path.write_text(RECIPE)
    return load_recipe(path, columns=known_columns())


def photo(number: int, scale: float = 1, **options: Any) -> bytes:
    picture = Image.open(PHOTOS[number]).convert("RGB")
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def members(pictures: dict[str, bytes]) -> dict[str, bytes | str | dict[str, Any]]:
    captions = {f"{key}.txt": CAPTION for key in pictures}
    return {f"{key}.jpg": data for key, data in pictures.items()} | captions


def verdicts(run: Run) -> dict[str, dict[str, Any]]:
    return {r["key"]: r for s in run.shards for r in pq.read_table(run.verdicts_path(s.number)).to_pylist()}


def test_copies_are_dropped_by_bytes_then_by_hash_then_by_features(
    make_shard: Any, recipe: Recipe, tmp_path: Path
) -> None:
    flipped = io.BytesIO()
    Image.open(PHOTOS[2]).convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(flipped, "JPEG", quality=95)
    pictures = {
        "a": photo(0), "a_again": photo(0), "b_small": photo(1, 0.5), "b": photo(1),
        "c": photo(2, quality=95), "c_flipped": flipped.getvalue(), "d": photo(3), "e": b"<html>",
    }  # fmt: skip
    run, _, _ = curate([str(make_shard(members(pictures)))], tmp_path / "out", recipe, Settings())
    found = verdicts(run)
    dropped = {key: row["dropped_by"] for key, row in found.items() if not row["keep"]}
    assert dropped == {
        "a_again": "same_bytes", "b_small": "same_look", "c_flipped": "redundancy", "e": "decodable",
    }  # fmt: skip
    assert found["a_again"]["kept_instead"] == found["a"]["uid"] and found["a_again"]["distance"] == 0
    assert found["b_small"]["kept_instead"] == found["b"]["uid"] and 0 <= found["b_small"]["distance"] <= 4
    assert found["c_flipped"]["kept_instead"] == found["c"]["uid"] and 0 < found["c_flipped"]["distance"] < 0.05
    assert found["c"]["group"] == found["c_flipped"]["group"] != found["d"]["group"] and found["d"]["distance"] is None
    assert recipe_from_dict(recipe.to_dict(), "run.json") == recipe


def test_near_duplicates_of_an_earlier_run_are_dropped(
    make_shard: Any, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = make_shard(members({"a": photo(0), "b": photo(1), "copy": photo(1)}), "earlier.tar")
    first, _, _ = curate([str(earlier)], tmp_path / "first", recipe, Settings())
    later = make_shard(members({"b": photo(1, 0.7), "c": photo(2), "d": photo(3)}), "later.tar")
    command = ["curate", str(later), "-o", str(tmp_path / "second"), "--recipe", str(tmp_path / "near.yaml")]
    assert main([*command, "--against", str(tmp_path / "first")]) == 0
    found = verdicts(Run.open(tmp_path / "second"))
    assert {key: row["dropped_by"] for key, row in found.items()} == {"b": "already_kept", "c": None, "d": None}
    assert found["b"]["kept_instead"] == verdicts(first)["b"]["uid"] and 0 < found["b"]["distance"] < 0.05
    # The first run is still compared with. A value that is set makes another recipe, which is decided anew.
    again = ["decide", str(tmp_path / "second"), "--set", "decodable.max=1", "--neighbours", "faiss"]
    assert main(again) == 0
    second = Run.open(tmp_path / "second")
    assert verdicts(second) == found
    assert second.manifest["neighbours"] == {"redundancy": "faiss", "already_kept": "faiss"}
    assert main([*again[:-1], "fais"]) == 2 and "fais" in capsys.readouterr().err
    capsys.readouterr()
    assert main([*command[:-1], str(tmp_path / "near.yaml"), "--against", str(tmp_path / "nowhere")]) == 2
    assert "no run here" in capsys.readouterr().err


def test_near_duplicates_of_evaluation_pictures_are_dropped(make_shard: Any, recipe: Recipe, tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    for number in (1, 4):
        (evaluation / f"{number}.jpg").write_bytes(photo(number, 0.8))  # without captions
    pictures = {"a": photo(0), "b": photo(1), "b_again": photo(1, 0.9), "c": photo(2)}
    shard = str(make_shard(members(pictures)))
    run, funnel, _ = curate([shard], tmp_path / "out", recipe, Settings(), excluded=[evaluation], exclude_within=0.06)
    found = {key: row["dropped_by"] for key, row in verdicts(run).items()}
    assert found == {"a": None, "b": "excluded", "b_again": "same_look", "c": None}
    assert "≥ 0.06 to all of evaluation-" in next(line.rule for line in funnel.lines if line.criterion == "excluded")


def test_references_are_compared_before_and_after_redundancy(recipe: Recipe) -> None:
    extended = with_references(recipe, [Path("run")], [Path("x"), Path("y")], None)
    names = [c.name for c in extended.criteria]
    assert names == ["decodable", "same_bytes", "same_look", "excluded", "excluded_2", "redundancy", "already_kept"]
    assert {c.within for c in extended.criteria if isinstance(c, Exclusion)} == {0.05}
    assert recipe_from_dict(extended.to_dict(), "run.json") == extended
    with pytest.raises(DanqingError, match="--exclude-within 5: a cosine distance between 0 and 2"):
        with_references(recipe, [], [Path("x")], 5)


def test_runs_of_other_models_are_not_compared(make_shard: Any, recipe: Recipe, tmp_path: Path) -> None:
    first, _, _ = curate([str(make_shard(members({"a": photo(0)}), "a.tar"))], tmp_path / "first", recipe, Settings())
    second, _, _ = curate([str(make_shard(members({"a": photo(0)}), "b.tar"))], tmp_path / "second", recipe, Settings())
    first.note("models", image_embedding="another")
    with pytest.raises(DanqingError, match="same image_embedding"):
        decide_run(second, with_references(recipe, [tmp_path / "first"]))


@pytest.fixture
def batches(make_shard: Any, recipe: Recipe, tmp_path: Path) -> list[Path]:
    """Three decided runs that share photographs: the first two share 1, the last has 2 and 3 again."""
    contents = [
        {"a0": photo(0), "a0_again": photo(0), "a1": photo(1), "a2": photo(2)},
        {"b1": photo(1, 0.7), "b3": photo(3)},
        {"c2": photo(2, 0.9), "c3": photo(3, 0.9), "c4": photo(4), "c5": b"<html>"},
    ]
    folders = [tmp_path / f"run{number}" for number in range(3)]
    for folder, pictures in zip(folders, contents, strict=True):
        curate([str(make_shard(members(pictures), f"{folder.name}.tar"))], folder, recipe, Settings())
    return folders


def test_merging_drops_what_runs_have_in_common(
    batches: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", *map(str, batches), "-o", str(tmp_path / "all")]) == 0
    run = Run.open(tmp_path / "all")
    found = verdicts(run)
    dropped = {key: row["dropped_by"] for key, row in found.items() if not row["keep"]}
    assert dropped == {
        "a0_again": "same_bytes", "b1": "redundancy", "c2": "redundancy", "c3": "redundancy", "c5": "decodable",
    }  # fmt: skip
    assert found["b1"]["kept_instead"] == found["a1"]["uid"] and 0 < found["b1"]["distance"] < 0.05
    assert found["a0_again"]["kept_instead"] == found["a0"]["uid"]
    assert found["c3"]["group"] == found["b3"]["group"] and len({r["group"] for r in found.values()}) == 5
    line = Funnel.read(run.folder / "funnel.json").lines[-1]
    assert (line.dropped, line.left) == (3, 5)
    written = pq.read_table(run.table_path(0))["key"].to_pylist()
    assert written == ["a0", "a1", "a2", "b3", "c4"] and len(np.load(run.folder / "kept_uids.npy")) == 5
    assert (run.folder / "report.html").exists()
    assert main(["explain", str(run.folder), "c3"]) == 0 and "kept instead: run1" in capsys.readouterr().out
    assert main(["decide", str(run.folder)]) == 2 and "is a merge" in capsys.readouterr().err


def test_a_run_added_later_is_compared_with_all_earlier_rows(
    batches: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = merge_runs(batches, tmp_path / "whole", neighbours="faiss")
    assert whole.manifest["neighbours"] == {whole.recipe.criteria[-1].name: "faiss"}
    merge_runs(batches[:2], tmp_path / "grown")
    compared = []
    join = index.join_neighbours

    def watched(features: Any, within: float, parent: Any, known: int = 0, progress: Any = None) -> None:
        compared.append((known, len(features)))
        join(features, within, parent, known, progress)

    monkeypatch.setattr(index, "join_neighbours", watched)
    grown, funnel = merge_runs(batches, tmp_path / "grown")
    assert compared[0] == (5, 8) and all(known == rows for known, rows in compared[1:])
    assert verdicts(grown) == verdicts(whole)
    assert set(grown.manifest["neighbours"].values()) == {"tiles"}
    compared.clear()
    assert (
        merge_runs(batches, tmp_path / "grown")[1] == funnel and compared == []
    )  # nothing changed, so nothing is compared
    write_run(grown)
    fewer, _ = merge_runs(batches[1:], tmp_path / "grown")
    assert compared[0] == (0, 5)  # other runs than before: every row is compared
    write_run(fewer)
    for kind in ("scores", "features", "verdicts"):  # the shards of the other runs are removed
        assert {path.stem for path in (fewer.folder / kind).iterdir()} == {"00000", "00001"}


def test_runs_that_differ_are_not_merged(batches: list[Path], recipe: Recipe, tmp_path: Path) -> None:
    other = load_recipe(tmp_path / "near.yaml", ["redundancy.within=0.2"])
    decide_run(Run.open(batches[1]), other)
    with pytest.raises(DanqingError, match=r"redundancy.within: 0.05 there, 0.2 here"):
        merge_runs(batches, tmp_path / "all")
    with pytest.raises(DanqingError, match="a run that is not a merge"):
        merge_runs(batches[:1], batches[2])
    with pytest.raises(DanqingError, match="one of the runs to merge; choose another --output"):
        merge_runs(batches[:1], batches[0])
    run = Run.open(batches[2])
    del run.manifest["decided"]
    run.save()
    with pytest.raises(DanqingError, match="run `danqing decide"):
        merge_runs([batches[0], batches[2]], tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"within": 0.1, "keep": "largest"}, "'keep' is centroid, first or highest:<column>, not 'largest'"),
        ({"within": 0, "column": "sha256", "keep": "centroid"}, "'keep' is first or highest:<column>"),
        ({"within": 0.1, "keep": "highest:widht"}, "no stage computes a column 'widht'; did you mean 'width'"),
        ({"within": 2, "column": "sha256"}, "'within' of sha256 is 0"),
        ({"within": 9, "column": "perceptual_hash"}, "a number of bits from 0 to 8, not 9"),
        ({"within": 0.5, "column": "perceptual_hash"}, "a number of bits from 0 to 8, not 0.5"),
        ({"within": 0.1, "max_diameter": 3}, "'max_diameter' is a cosine distance between 0 and 2"),
        (
            {"within": 0, "column": "sha256", "max_diameter": 0.1},
            "'max_diameter' is a distance of features; sha256 has none",
        ),
        (
            {"max": 1, "column": "width", "keep": "first"},
            "without 'within', 'pattern' or 'vlm' it is a threshold of one score, which takes no 'keep'",
        ),
        ({"within": 0.1, "recall": 1.5}, "'recall' is a share above 0, at most 1, not 1.5"),
        ({"within": 0, "column": "sha256", "recall": 0.9}, "'recall' is for features"),
        ({"within": 0.1, "not_near": "x", "keep": "first"}, "which takes no 'keep'"),
        ({"not_near": "x"}, "'not_near' needs 'within'"),
        ({"within": 0, "column": "pixels"}, "the column 'pixels' is not stored"),
        ({"within": 0.1, "keep": "highest:language"}, "the column 'language' holds text"),
        ({"within": 0.1, "max": 1}, "'within' makes it a redundancy criterion, which takes no 'max'"),
    ],
)
def test_wrong_redundancy_criteria_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"recipe: bad\ncriteria:\n  near: {keys}\n")
    with pytest.raises(DanqingError) as caught:
        load_recipe(path, columns=known_columns())
    assert message in str(caught.value) and "bad.yaml:3" in str(caught.value)


def test_rules_name_the_representative() -> None:
    assert Redundancy("r", 0.1).rule == "one of each group, cosine distance < 0.1"
    assert "≤ 0.2 from it, highest width is kept" in Redundancy("r", 0.1, keep="highest:width", max_diameter=0.2).rule
    assert Redundancy("r", 4, "perceptual_hash").rule == "one of each group, perceptual_hash: ≤ 4 bits differ"


def test_a_zero_or_non_finite_embedding_is_an_error_of_its_row(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        batch = 4

        def run(self, **inputs: Any) -> dict[str, np.ndarray]:
            return {"embedding": np.array([[0.6, 0.8], [0, 0], [np.nan, 1], [1, 0]], np.float32)}

    class Models:
        def session(self, role: str, device: Device) -> Session:
            return Session()

    stage = ImageEmbedding(Context(device, Models(), frozenset()))  # type: ignore[arg-type]
    batch = Batch({"row": np.arange(4), "embedding_input": np.zeros((4, 1)), "error": [None] * 4})
    stage(batch)
    assert [error is None for error in batch["error"]] == [True, False, False, True]
    assert "zero or non-finite" in batch["error"][1]
