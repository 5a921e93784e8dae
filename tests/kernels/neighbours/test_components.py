"""Connected components, compared with a flood fill."""

from __future__ import annotations

import numpy as np
import pytest

from danqing.engine.core.device import Device, open_device
from danqing.kernels.neighbours.components import find_components, unite
from danqing.kernels.portable import kernel


@kernel
def join(first, last, step, left, right, parent):
    for edge in range(first, last, step):
        unite(parent, left[edge], right[edge])


def components(device: Device, rows: int, left: np.ndarray, right: np.ndarray) -> list[int]:
    parent = np.arange(rows)
    join.launch(device, len(left), left, right, parent)
    found: list[int] = find_components(device, parent).tolist()
    return found


def flood(rows: int, left: np.ndarray, right: np.ndarray) -> list[int]:
    """Computes components by spreading the smallest row of each edge until nothing changes."""
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
def test_components_equal_a_flood_fill_in_any_edge_order(seed: int, device: Device) -> None:
    left, right = np.random.default_rng(seed).integers(0, 200, (2, 120))
    expected = flood(200, left, right)
    for order in (np.arange(120), np.random.default_rng(seed).permutation(120)):
        assert components(device, 200, left[order], right[order]) == expected


def test_concurrent_unions_lose_no_edge() -> None:
    """With the edges of a chain in random order, most unions meet a component that another thread is changing."""
    rows = 200_000
    shuffled = np.random.default_rng(1).permutation(rows)
    left, right = shuffled[:-1], shuffled[1:]
    with open_device(threads=8) as device:
        for _ in range(5):
            assert not any(components(device, rows, left, right))


def test_rows_without_edges_are_their_own_components(device: Device) -> None:
    nothing = np.empty(0, np.int64)
    assert components(device, 4, nothing, nothing) == [0, 1, 2, 3]
