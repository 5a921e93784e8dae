from __future__ import annotations

import numpy as np
import pytest

from engine.dedup.groups import group_rows


def flood(rows: int, left: np.ndarray, right: np.ndarray) -> list[int]:
    """Components the slow way: spread the smallest number until nothing changes."""
    label = list(range(rows))
    changed = True
    while changed:
        changed = False
        for a, b in zip(left, right, strict=True):
            low = min(label[a], label[b])
            changed |= label[a] != low or label[b] != low
            label[a] = label[b] = low
    return label


@pytest.mark.parametrize("seed", range(5))
def test_components_equal_a_flood_fill_in_any_edge_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, 200, (2, 120))
    expected = flood(200, left, right)
    for order in (np.arange(120), rng.permutation(120)):
        parts = np.array_split(order, 7)
        edges = [(left[part], right[part]) for part in parts]
        assert group_rows(200, edges).tolist() == expected


def test_rows_without_edges_are_alone() -> None:
    assert group_rows(4, []).tolist() == [0, 1, 2, 3]
