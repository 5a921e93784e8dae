"""The approximate neighbour search against the exact one."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from danqing.engine.core.device import Device, open_device
from danqing.engine.core.files import write_json
from danqing.engine.decide.columns import TableColumns
from danqing.engine.decide.dedup import lists, sample
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.groups import likely_components, near_components
from danqing.engine.decide.dedup.products import PRODUCTS
from danqing.engine.decide.dedup.sample import HELD_OUT_ROWS, NeighbourSample
from danqing.engine.decide.funnel import Funnel
from danqing.engine.decide.scores import Scores
from danqing.engine.decide.verdicts import walk
from danqing.engine.recipe.criteria import Redundancy
from danqing.engine.recipe.outcome import Recall
from danqing.engine.recipe.reading import load_recipe

ROWS, WITHIN = 9_000, 0.1  # enough rows for lists and for folding


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """float16 (rows, 48): groups of near rows within broad clusters, like features of pictures."""
    rng = np.random.default_rng(2)
    clusters = rng.normal(size=(40, 48))
    groups = clusters[rng.integers(0, 40, ROWS // 4)] + 0.8 * rng.normal(size=(ROWS // 4, 48))
    rows = groups[rng.integers(0, len(groups), ROWS)]
    rows += rng.uniform(0.05, 0.6, (ROWS, 1)) * rng.normal(size=rows.shape)
    return rows.astype(np.float16)


@pytest.fixture(scope="module")
def near(vectors: np.ndarray) -> np.ndarray:
    """bool (rows, rows): pairs below the threshold."""
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    edge = np.concatenate([1 - part @ unit.T < WITHIN for part in np.array_split(unit, 16)])
    np.fill_diagonal(edge, False)
    return edge


@pytest.fixture(scope="module")
def likely(vectors: np.ndarray) -> np.ndarray:
    """The groups that are found with a recall of 0.99."""
    with open_device() as device:
        return likely_components(Features(device, [vectors]), WITHIN, 0.99)[0]


def share(near: np.ndarray, group: np.ndarray) -> float:
    left, right = np.nonzero(near)
    return float((group[left] == group[right]).mean())


@pytest.mark.parametrize("asked", [0.9, 0.99, 0.999])
def test_the_requested_recall_is_reached(
    device: Device, vectors: np.ndarray, near: np.ndarray, monkeypatch: pytest.MonkeyPatch, asked: float
) -> None:
    monkeypatch.delattr(lists, "join_neighbours")  # without the exact search
    features = Features(device, [vectors])
    (group, measured), exact = likely_components(features, WITHIN, asked), near_components(features, WITHIN)
    assert asked <= share(near, group) <= 1 == share(near, exact)
    assert (exact[group] == exact).all(), "a group must lie within a true one"
    assert measured.pairs > 2000 and abs(measured.share - share(near, group)) < (1 - asked) / 2 + 1e-4


def test_all_pairs_are_compared_if_lists_are_not_enough(
    device: Device, vectors: np.ndarray, near: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "DEPTH", 1)
    monkeypatch.setattr(lists, "KMEANS_ROUNDS", 0)
    features = Features(device, [vectors])
    assert (likely_components(features, WITHIN, 0.9999)[0] == near_components(features, WITHIN)).all()
    monkeypatch.setattr(lists, "join_neighbours", lambda *arguments: None)
    assert share(near, likely_components(features, WITHIN, 0.9999)[0]) < 0.99


def test_few_rows_are_searched_exactly(device: Device, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRODUCTS, "cpu", PRODUCTS["cpu"]._replace(exact_rows=ROWS + 1))
    monkeypatch.delattr(lists, "InvertedFile")
    features = Features(device, [vectors])
    group, measured = likely_components(features, WITHIN, 0.9)
    assert (group == near_components(features, WITHIN)).all() and measured.share == 1


@pytest.mark.parametrize(("threads", "tile", "block"), [(1, 2048, 32768), (3, 64, 500), (2, 1000, 3000)])
def test_neither_threads_nor_tiles_change_the_outcome(
    vectors: np.ndarray, likely: np.ndarray, monkeypatch: pytest.MonkeyPatch, threads: int, tile: int, block: int
) -> None:
    monkeypatch.setitem(PRODUCTS, "cpu", PRODUCTS["cpu"]._replace(tile=tile, block=block))
    with open_device(threads=threads) as device:
        assert (likely_components(Features(device, [vectors]), WITHIN, 0.99)[0] == likely).all()


@pytest.mark.parametrize(("rows", "tile"), [(ROWS, 2048), (ROWS // 4, 10)])
def test_rows_known_before_are_not_compared_with_each_other(
    device: Device, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch, rows: int, tile: int
) -> None:
    monkeypatch.setitem(PRODUCTS, "cpu", PRODUCTS["cpu"]._replace(tile=tile, exact_rows=0))
    features, known = Features(device, [vectors[:rows]]), rows * 3 // 4
    alone, _ = likely_components(features, WITHIN, 0.99, earlier=np.arange(known))
    fresh = np.flatnonzero(alone != np.arange(rows))
    # Known rows are in one group only through a new row.
    assert all((np.flatnonzero(alone == number) >= known).any() for number in np.unique(alone[fresh]))
    monkeypatch.delattr(lists, "join_neighbours")
    before = near_components(features.take(slice(0, known)), WITHIN)
    grown, measured = likely_components(features, WITHIN, 0.99, earlier=before)
    assert (grown[:known][before] == grown[:known]).all() and measured.share > 0.99
    if tile < 2048:
        monkeypatch.setitem(PRODUCTS, "cpu", PRODUCTS["cpu"]._replace(tile=2048))
        assert (likely_components(features, WITHIN, 0.99, earlier=before)[0] == grown).all()


def test_many_copies_form_one_group(device: Device, vectors: np.ndarray) -> None:
    many = np.concatenate([vectors, np.repeat(vectors[:1], 5_000, axis=0)])
    group, measured = likely_components(Features(device, [many]), WITHIN, 0.99)
    assert (group[ROWS:] == group[0]).all() and measured.share > 0.99


def test_rows_without_direction_have_no_neighbours(device: Device, vectors: np.ndarray) -> None:
    holed = vectors.copy()
    holed[5::7], holed[6::7, 3] = 0, np.nan
    group, _ = likely_components(Features(device, [holed]), WITHIN, 0.99)
    without = np.r_[5:ROWS:7, 6:ROWS:7]
    assert (group[without] == without).all() and not np.isin(np.delete(group, without), without).any()


def test_a_sample_has_the_exact_neighbours_of_its_rows(device: Device, vectors: np.ndarray, near: np.ndarray) -> None:
    found = NeighbourSample(Features(device, [vectors]), WITHIN)
    assert len(np.unique(found.rows)) == sample.RECALL_SAMPLE_ROWS
    for row, count, others in zip(found.rows, found.counts, found.near, strict=True):
        assert others[:count].tolist() == np.flatnonzero(near[row])[: sample.MAX_NEIGHBOURS].tolist()
    pairs = np.minimum(near[found.rows].sum(1), sample.MAX_NEIGHBOURS)
    assert found.recall(np.arange(ROWS)) == Recall(0, int(pairs.sum()))
    assert found.recall(np.zeros(ROWS, np.int64), HELD_OUT_ROWS) == Recall(*[int(pairs[1::2].sum())] * 2)


def test_very_few_rows_and_no_rows(device: Device, vectors: np.ndarray) -> None:
    for rows in (0, 1, 2, 500):
        features = Features(device, [vectors[:rows]])
        assert (likely_components(features, WITHIN, 0.5)[0] == near_components(features, WITHIN)).all()
    assert str(likely_components(features, 1e-9, 0.5)[1]) == "no pairs to measure it by"


def test_the_funnel_has_the_measured_recall(device: Device, vectors: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "quick.yaml"
    path.write_text("recipe: quick\ncriteria:\n  near: {within: 0.1, recall: 0.99}\n")
    recipe = load_recipe(path)
    assert recipe.criteria == (Redundancy("near", 0.1, recall=0.99),)
    rows = pa.chunked_array([np.arange(ROWS)])
    scores = Scores(np.zeros(ROWS, bool), TableColumns({"feature_row": rows}, [vectors]))
    verdicts = walk(scores, recipe, device)
    funnel = Funnel.count(recipe, verdicts.dropped_by, verdicts.recall)
    measured = funnel.lines[0].recall
    assert measured is not None and measured.share >= 0.99
    measurement = f"(measured: {measured.share:.5f} of {measured.pairs:,} pairs)"
    assert funnel.lines[0].measured_rule == f"one of each group, cosine distance < 0.1, recall ≥ 0.99 {measurement}"
    write_json(tmp_path / "funnel.json", funnel.to_dict())
    assert Funnel.read(tmp_path / "funnel.json") == funnel


def test_rows_are_sorted_by_list_in_little_memory(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "SORTED_ROWS", 1 << 12)
    rows, known = 100_000, 30_001
    ranks = np.random.default_rng(1).integers(0, 7, (1, rows), np.uint16)
    file: Any = object.__new__(lists.InvertedFile)
    file.features, file.count, file.known, file.ranks = SimpleNamespace(device=device), 7, known, ranks
    tracemalloc.start()
    try:
        found = file._file(0)
        assert tracemalloc.get_traced_memory()[1] / rows < 8
    finally:
        tracemalloc.stop()
    assert (found.rows == np.argsort(ranks[0], kind="stable")).all()
    for number, (begin, new, end) in enumerate(found.lists()):
        part = found.rows[begin:end]
        assert (ranks[0, part] == number).all() and (part < known).sum() == new - begin
