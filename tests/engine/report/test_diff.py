"""Comparison of two runs: which differences are allowed."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.phases import curate
from danqing.engine.recipe.reading import Recipe
from danqing.engine.report.differences import count_regrouped, diff
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from tests.engine.score.test_run import crawl, samples

__all__ = ["crawl"]


@pytest.fixture
def runs(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> tuple[Run, Run]:
    """A run and its copy, with random features, because the recipe has no model."""
    ours, _, _ = curate(crawl, tmp_path / "ours", plain_recipe, Settings())
    for shard in ours.shards:
        table = pq.read_table(ours.scores_path(shard.number))
        rows = pa.array(np.arange(len(table), dtype=np.int32))
        change(ours.scores_path(shard.number), "feature_row", lambda column, rows=rows: rows)
        vectors = np.random.default_rng(shard.number).normal(size=(len(table), 8))
        np.save(ours.features_path(shard.number), vectors.astype(np.float16))
    shutil.copytree(ours.folder, tmp_path / "theirs")
    return ours, Run.open(tmp_path / "theirs")


def change(path: Path, name: str, new: Callable[[pa.ChunkedArray], Any]) -> None:
    table = pq.read_table(path)
    position = table.column_names.index(name)
    changed = pa.array(new(table[name].combine_chunks()), table.schema.field(name).type)
    pq.write_table(table.set_column(position, name, changed), path)


def at(row: int, value: Any) -> Callable[[pa.ChunkedArray], list[Any]]:
    return lambda column: [value if n == row else old for n, old in enumerate(column.to_pylist())]


def scaled(row: int, factor: float) -> Callable[[pa.ChunkedArray], list[Any]]:
    return lambda column: [
        old * factor if n == row and old is not None else old for n, old in enumerate(column.to_pylist())
    ]


def test_a_run_equals_its_copy(runs: tuple[Run, Run], capsys: pytest.CaptureFixture[str]) -> None:
    found = diff(*runs)
    assert not found.objections and not found.flips and found.rows == 17 and found.compared == 17
    assert found.columns["words"].rows == 17 and found.columns["pixel_std"].rows == 12
    assert not any(column.unequal or column.one_sided for column in found.columns.values())
    assert main(["diff", str(runs[0].folder), str(runs[1].folder)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("the runs agree")


def test_numbers_may_differ_within_the_tolerance_but_not_texts(runs: tuple[Run, Run]) -> None:
    change(runs[1].scores_path(0), "pixel_std", scaled(2, 1 + 5e-5))
    assert not diff(*runs).objections and diff(*runs).columns["pixel_std"].unequal == 1
    change(runs[1].scores_path(0), "laplacian_variance", scaled(3, 1 + 5e-4))
    change(runs[1].scores_path(2), "text_clean", at(1, "别的"))
    assert diff(*runs).objections == [
        "text_clean: 1 of 15 differ, most at 00021", "laplacian_variance: 1 of 12 differ, most at 00003"
    ]  # fmt: skip


def test_scores_of_a_network_may_differ_but_not_those_of_a_word_list(runs: tuple[Run, Run]) -> None:
    assert diff(*runs).columns["unsafe_text"].judged
    assert diff(*runs).models == []
    model = runs[1].manifest["models"]["text_safety"]
    card, model["name"], model["card"], model["onnx"] = model["card"][:8], "other", "1" * 64, "0" * 64
    assert diff(*runs).models == [
        f"models.text_safety: jionlp-pornography (card {card}) there, other (card 11111111) here"
    ]
    judged = {column.name for column in diff(*runs).columns.values() if column.judged}
    assert "unsafe_text" not in judged and {"words", "unsafe_caption"} <= judged


def test_features_must_have_a_high_cosine(runs: tuple[Run, Run]) -> None:
    vectors = np.load(runs[1].features_path(1))
    np.save(runs[1].features_path(1), vectors * 2)  # their length does not count
    assert diff(*runs).cosine > 0.99999
    vectors[4] = -vectors[4]
    np.save(runs[1].features_path(1), vectors)
    found = diff(*runs)
    assert found.cosine == pytest.approx(-1)
    assert found.objections == ["features: smallest cosine -1.000000, below 0.999"]


def test_few_verdicts_may_change(runs: tuple[Run, Run], capsys: pytest.CaptureFixture[str]) -> None:
    change(runs[1].verdicts_path(0), "dropped_by", at(1, "words"))
    change(runs[1].verdicts_path(2), "group", at(0, 14))
    found = diff(*runs)
    assert found.flips == [("00001", None, "words")] and found.regrouped == 1 and len(found.objections) == 2
    folders = [str(run.folder) for run in runs]
    assert main(["diff", *folders]) == 1 and "00001: kept there, words here" in capsys.readouterr().out
    assert main(["diff", *folders, "--flips", "0.1"]) == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "regrouped"),
    [
        ([None, 0, 0, 1, 1], [0, 1, 1, 2, 2], 1),  # the numbers of later groups do not count
        ([0, 0, 0, None], [0, 0, None, None], 1),
        ([0, 0, 0, 1, 1], [0, 0, 0, 0, 0], 2),
        ([0, 0, 0, 0, 0], [0, 0, 1, 1, 1], 2),
        ([0, 0, 1, 1], [1, 1, 0, 0], 0),
    ],
)
def test_groups_are_compared_by_their_rows(ours: list[int | None], theirs: list[int | None], regrouped: int) -> None:
    assert count_regrouped(Counter(zip(ours, theirs, strict=True))) == regrouped


def test_only_runs_over_the_same_input_can_be_compared(
    runs: tuple[Run, Run], make_shard: Any, plain_recipe: Recipe, tmp_path: Path
) -> None:
    other = [str(make_shard(samples(50, 2), "00000.tar"))]
    run, _, _ = curate(other, tmp_path / "other", plain_recipe, Settings())
    with pytest.raises(DanqingError, match="different shards: 3 there, 1 here"):
        diff(runs[0], run)
    change(runs[1].scores_path(1), "uid", at(0, "0" * 32))
    with pytest.raises(DanqingError, match="shard 00001 holds other pairs"):
        diff(*runs)
    del runs[1].manifest["decided"]
    with pytest.raises(DanqingError, match="no verdicts yet"):
        diff(*runs)
    assert main(["diff", str(runs[0].folder), str(tmp_path)]) == 2
