"""The order of the pairs: a function of seed, epoch and step, the same for any number of ranks, threads and restarts.

The shards of all runs are permuted in each epoch. Windows of consecutive shards follow one another; the rows of a
window are permuted among themselves, so that only the shards of one window are open at a time. Batch k of an epoch is
the rows k·B to (k + 1)·B of this sequence. Rows at the end that fill no batch are left out; they are others in each
epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from math import gcd

import numpy as np

SHARDS, ROWS, CAPTIONS = range(3)
"""What is permuted or drawn: first component of the counter that is hashed."""


def hashed(counters: np.ndarray, *key: int) -> np.ndarray:
    """Hashes counters under a key, by the finalizer of SplitMix64 (Steele et al., OOPSLA 2014).

    Args:
        counters: uint64 (n,).
        key: whole numbers, of 64 bits each.

    Returns:
        uint64 (n,).
    """
    state = np.zeros(1, np.uint64)
    for word in key:
        state = _mixed(state ^ np.uint64(word & 0xFFFFFFFFFFFFFFFF))
    return _mixed(_mixed(counters.astype(np.uint64)) ^ state)


def _mixed(values: np.ndarray) -> np.ndarray:
    values = values + np.uint64(0x9E3779B97F4A7C15)  # wraps around
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permutation(size: int, *key: int) -> np.ndarray:
    """Returns a permutation of 0 to size - 1 that depends on the key alone: int64 (size,)."""
    return np.argsort(hashed(np.arange(size, dtype=np.uint64), *key), kind="stable")


@dataclass(frozen=True)
class Place:
    """A row of a window.

    Attributes:
        epoch, window: from 0.
        position: place in the window's permutation.
    """

    epoch: int
    window: int
    position: int


@dataclass(frozen=True, eq=False)  # its hash, a key of the caches below, must not read all rows
class Order:
    """The sequence of the pairs.

    Attributes:
        rows: pairs of each shard.
        batch: pairs of a global batch.
        seed: of the permutations.
        window_shards: shards of a window.

    Raises:
        ValueError: the shards have fewer pairs than one batch.
    """

    rows: tuple[int, ...]
    batch: int
    seed: int = 0
    window_shards: int = 16

    def __post_init__(self) -> None:
        if sum(self.rows) < self.batch:
            raise ValueError(f"{sum(self.rows):,} pairs are fewer than one batch of {self.batch:,}")

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.rows) // self.batch

    def places(self, step: int, start: int = 0, stop: int | None = None) -> list[Place]:
        """Returns the rows of a global batch, or those from `start` to `stop` of it.

        Args:
            step: from 0, over all epochs.
            start, stop: the part of a rank.
        """
        epoch, batch = divmod(step, self.steps_per_epoch)
        ends = _window_ends(self, epoch)
        first = batch * self.batch
        places = np.arange(first + start, first + (self.batch if stop is None else stop))
        windows = np.searchsorted(ends, places, side="right")
        positions = places - np.append(0, ends)[windows]
        return [Place(epoch, *pair) for pair in zip(windows.tolist(), positions.tolist(), strict=True)]

    def row(self, place: Place) -> tuple[int, int]:
        """Returns the shard and the row in it of a place."""
        rows = _window_rows(self, place.epoch, place.window)
        shard, row = rows[place.position]
        return int(shard), int(row)

    def window_of(self, place: Place) -> tuple[int, ...]:
        """Returns the shards of a place's window."""
        shards = _shards(self, place.epoch)[place.window * self.window_shards :][: self.window_shards]
        return tuple(shards.tolist())

    def replacement(self, place: Place) -> Place:
        """Returns the row of the same window that stands in for a broken one.

        It is a batch further on, so that it is in no batch twice if the window holds two batches. Repeated calls visit
        all rows of the window.
        """
        size = len(_window_rows(self, place.epoch, place.window))
        stride = next(stride for stride in count(self.batch) if gcd(stride, size) == 1)
        return Place(place.epoch, place.window, (place.position + stride) % size)


@lru_cache(maxsize=4)
def _shards(order: Order, epoch: int) -> np.ndarray:
    return permutation(len(order.rows), SHARDS, order.seed, epoch)


@lru_cache(maxsize=4)
def _window_ends(order: Order, epoch: int) -> np.ndarray:
    """Rows of the epoch up to the end of each window: int64 (windows,)."""
    rows = np.array(order.rows)[_shards(order, epoch)]
    return np.cumsum(np.add.reduceat(rows, np.arange(0, len(rows), order.window_shards)))


@lru_cache(maxsize=4)
def _window_rows(order: Order, epoch: int, window: int) -> np.ndarray:
    """Shard and row of each place of a window: int64 (rows, 2)."""
    shards: Sequence[int] = _shards(order, epoch)[window * order.window_shards :][: order.window_shards].tolist()
    pairs = np.concatenate([np.stack([np.full(n, s), np.arange(n)], 1) for s in shards for n in [order.rows[s]]])
    return pairs[permutation(len(pairs), ROWS, order.seed, epoch, window)]
