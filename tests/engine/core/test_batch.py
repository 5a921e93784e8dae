from __future__ import annotations

import itertools

import numpy as np
import pytest

from danqing.engine.core.batch import Batch, pack


def batch(start: int, stop: int) -> Batch:
    rows = np.arange(start, stop)
    return Batch({"row": rows, "name": [f"n{r}" for r in rows], "pixels": np.stack([rows] * 2, 1)})


def ones(batch: Batch) -> np.ndarray:
    return np.ones(len(batch))


def test_take_and_concat_keep_columns_together() -> None:
    joined = Batch.concat([batch(0, 3), batch(3, 5)])
    assert joined["name"] == ["n0", "n1", "n2", "n3", "n4"]
    picked = joined.take(np.array([False, True, False, False, True]))
    assert (
        picked["row"].tolist() == [1, 4]
        and picked["name"] == ["n1", "n4"]
        and picked["pixels"].tolist() == [[1, 1], [4, 4]]
    )


def test_a_column_must_have_the_length_of_the_batch() -> None:
    with pytest.raises(ValueError, match="2 rows"):
        batch(0, 3)["x"] = [1, 2]


@pytest.mark.parametrize("borders", [[0, 10], [0, 1, 2, 3, 10], [0, 4, 4, 9, 10]])
def test_pack_makes_full_batches_across_borders(borders: list[int]) -> None:
    stream = [batch(a, b) for a, b in itertools.pairwise(borders) if b > a]
    packed = list(pack(stream, 4, ones))
    assert [len(b) for b in packed] == [4, 4, 2]
    assert np.concatenate([b["row"] for b in packed]).tolist() == list(range(10))
    assert [name for b in packed for name in b["name"]] == [f"n{r}" for r in range(10)]


def test_pack_by_weight_gives_a_heavy_row_its_own_batch() -> None:
    weights = np.array([1, 1, 9, 1, 3, 3])
    packed = list(pack([batch(0, 6)], 4, lambda b: weights[b["row"]]))
    assert [b["row"].tolist() for b in packed] == [[0, 1], [2], [3, 4], [5]]


def test_pack_adds_weights_in_the_order_of_the_rows() -> None:
    weights = np.random.default_rng(3).exponential(0.3, 1000)
    stream = [batch(start, start + 50) for start in range(0, 1000, 50)]
    starts, total = [0], 0.0
    for row, weight in enumerate(weights.tolist()):
        if row > starts[-1] and total + weight > 1:
            starts.append(row)
            total = 0.0
        total += weight
    packed = list(pack(stream, 1.0, lambda b: weights[b["row"]]))
    assert [b["row"][0] for b in packed] == starts


def test_pack_of_no_batches_is_empty() -> None:
    assert list(pack([], 4, ones)) == []
