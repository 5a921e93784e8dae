"""Sets of rows with like fingerprints: values that are equal, or 64-bit hashes that differ in a few bits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from danqing.engine.core.device import Device
from danqing.kernels.neighbours.components import find_components
from danqing.kernels.pictures.fingerprints import join_in_buckets

BITS = 64


def group_equal(values: np.ndarray) -> np.ndarray:
    """The first row with each row's value: int64 (rows,)."""
    _, firsts, which = np.unique(values, return_index=True, return_inverse=True)
    return firsts[which]


def group_hashes(device: Device, hashes: np.ndarray, within: int) -> np.ndarray:
    """The smallest row of each row's set, hashes chained together by at most `within` differing bits: int64 (rows,).

    Two hashes that differ in so few bits agree in one of `within` + 1 parts of them at least, so that only hashes
    that share a part are compared (multi-index hashing: Norouzi, Punjani and Fleet, CVPR 2012). Copies count once.

    Args:
        hashes: uint64 (rows,).
    """
    values, firsts, which = np.unique(hashes, return_index=True, return_inverse=True)
    by_row = np.argsort(firsts)  # a set's smallest value must also be its first row
    rank = np.empty_like(by_row)
    rank[by_row] = np.arange(len(by_row))
    values, xp = values[by_row], device.xp
    parent, unique = xp.arange(len(values)), device.up(values)
    edges = np.linspace(0, BITS, within + 2).astype(int)
    for low, high in pairwise(edges):
        mask = np.uint64(((1 << int(high)) - 1) ^ ((1 << int(low)) - 1))
        order = device.up(np.argsort(values & mask, kind="stable"))
        join_in_buckets.launch(device, len(values), unique, order, device.up([mask]), within, parent)
    return firsts[by_row][device.down(find_components(device, parent))[rank[which]]]
