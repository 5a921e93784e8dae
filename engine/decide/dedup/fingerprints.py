"""Groups rows by fingerprints: values that are equal, or 64-bit hashes that differ in few bits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from danqing.engine.core.device import Device
from danqing.kernels.neighbours.components import find_components
from danqing.kernels.pictures.fingerprints import join_in_buckets

HASH_BITS = 64
ROWS_PER_BATCH = 1 << 14
"""Rows whose groups are written at the same time."""


def group_equal(values: np.ndarray) -> np.ndarray:
    """Groups rows with equal values.

    Args:
        values: any type that sorts, (rows,), or several numbers a row, (rows, n).

    Returns:
        int64 (rows,): the first row with the same value.

    >>> group_equal(np.array([7, 3, 7])).tolist(), group_equal(np.array([])).tolist()
    ([0, 1, 0], [])
    """
    columns = np.atleast_2d(values.T)
    order = np.argsort(columns[0], kind="stable")
    begins = find_changes(columns[0][order])
    for column in columns[1:]:
        if (find_changes(column[order]) & ~begins).any():  # equal in the first number only
            order = np.lexsort(columns[::-1])
            begins = np.logical_or.reduce([find_changes(column[order]) for column in columns])
            break
    out, firsts, groups = np.empty_like(order), order[begins], 0
    for start in range(0, len(order), ROWS_PER_BATCH):  # a row takes 24 bytes, not 40
        part = slice(start, start + ROWS_PER_BATCH)
        number = groups + np.cumsum(begins[part])
        out[order[part]] = firsts[number - 1]
        groups = number[-1]
    return out


def find_changes(ordered: np.ndarray) -> np.ndarray:
    """Boolean (rows,): whether each value differs from the one before; the first does."""
    changes = np.ones(len(ordered), bool)
    changes[1:] = ordered[1:] != ordered[:-1]
    return changes


def number_distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers the distinct values by their first rows, so that a group's smallest number is that of its first row.

    Args:
        values: any type that sorts, (rows,).

    Returns:
        The distinct values; int64, the first row of each; int64 (rows,), the number of each row's value.

    >>> [part.tolist() for part in number_distinct(np.array([7, 3, 7]))]
    [[7, 3], [0, 1], [0, 1, 0]]
    """
    found, firsts, which = np.unique(values, return_index=True, return_inverse=True)
    by_row = np.argsort(firsts)
    number = np.empty_like(by_row)
    number[by_row] = np.arange(len(by_row))
    return found[by_row], firsts[by_row], number[which]


def group_hashes(device: Device, hashes: np.ndarray, within: int) -> np.ndarray:
    """Groups rows whose hashes are connected by a chain of pairs that differ in at most `within` bits.

    Two hashes that differ in at most `within` bits agree in at least one of `within` + 1 parts, so only hashes that
    share a part are compared (multi-index hashing: Norouzi, Punjani and Fleet, CVPR 2012). Equal hashes are compared
    once.

    Args:
        device: where the hashes are compared.
        hashes: uint64 (rows,), on the host.
        within: largest number of bits in which neighbours differ.

    Returns:
        int64 (rows,): the smallest row of each row's group.
    """
    xp, (values, firsts, number) = device.xp, number_distinct(hashes)
    parent, unique = xp.arange(len(values)), device.up(values)
    edges = np.linspace(0, HASH_BITS, within + 2).astype(int)
    for low, high in pairwise(edges):
        mask = np.uint64(((1 << int(high)) - 1) ^ ((1 << int(low)) - 1))
        order = device.up(np.argsort(values & mask, kind="stable"))
        join_in_buckets.launch(device, len(values), unique, order, device.up([mask]), within, parent)
    return firsts[device.down(find_components(device, parent))[number]]
