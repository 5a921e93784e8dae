"""Counts what a near-duplicate criterion joins at several distances: copies to their originals, and other pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from danqing.engine.recipe.criteria import MAX_BITS

STEPS = (0.5, 0.8, 1.0, 1.5, 2.0)
"""The recipe's cosine distance times these numbers is tried by default."""
SHOWN_PAIRS = 10
"""Pairs of pictures of each kind that are named."""
COMPARED_ROWS = 256
"""Pictures that are compared with all others in one step."""
DECIMALS = 6
"""Digits of reported distances, fewer than the order of summation can change."""
ALL = "all copies"


@dataclass(frozen=True)
class Copies:
    """Copies of one kind.

    Attributes:
        kind: the edit, or `ALL`.
        copies: number of copies; pictures that are too small for the edit have none.
        median: median distance to the original; None without copies.
        joined: at each `within`, the number of copies that are joined to their original.
    """

    kind: str
    copies: int
    median: float | None
    joined: tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """Two pictures of the run: shard and key of each, and their distance."""

    first: str
    second: str
    distance: float


@dataclass(frozen=True)
class Pairs:
    """Pairs of pictures of the sample.

    Attributes:
        pairs: number of pairs.
        joined: at each `within`, the number of pairs that are joined.
        shown: the pairs to look at.
    """

    pairs: int
    joined: tuple[int, ...]
    shown: tuple[Pair, ...]


class Measure(Protocol):
    """A distance of pictures, and when a criterion joins two of them."""

    def tried(self, chosen: float) -> tuple[float, ...]:
        """The distances to try, in ascending order; `chosen` is the recipe's `within`."""
        ...

    def prepare(self, values: np.ndarray) -> np.ndarray:
        """The values, (rows, …), in the form that is compared."""
        ...

    def between(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """float64 (rows,): the distances of prepared rows to rows."""
        ...

    def across(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """float64 (rows, others): the distances of all prepared rows to all others."""
        ...

    def joins(self, distance: np.ndarray, within: float) -> np.ndarray:
        """Boolean, of the shape of `distance`."""
        ...


class Cosine:
    """Cosine distance of features; a pair is joined below `within`.

    Args:
        within: the distances to try; empty: `STEPS` times the recipe's.
    """

    def __init__(self, within: Sequence[float] = ()) -> None:
        self.within = within

    def tried(self, chosen: float) -> tuple[float, ...]:
        around = (round(chosen * step, 4) for step in STEPS if chosen * step < 2)
        return tuple(sorted({*(self.within or around)}))

    def prepare(self, values: np.ndarray) -> np.ndarray:
        wide = values.astype(np.float64)
        unit: np.ndarray = wide / np.linalg.norm(wide, axis=-1, keepdims=True)
        return unit

    def between(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        distance: np.ndarray = (1 - (left * right).sum(-1)).round(DECIMALS)
        return distance

    def across(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        distance: np.ndarray = (1 - left @ right.T).round(DECIMALS)
        return distance

    def joins(self, distance: np.ndarray, within: float) -> np.ndarray:
        return distance < within


class Bits:
    """Number of bits in which perceptual hashes differ; a pair is joined at `within` bits and below."""

    def tried(self, chosen: float) -> tuple[float, ...]:
        return tuple(sorted({*range(0, MAX_BITS + 1, 2), int(chosen)}))

    def prepare(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.uint64)

    def between(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.bitwise_count(left ^ right).astype(np.float64)

    def across(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return self.between(left[:, None], right[None])

    def joins(self, distance: np.ndarray, within: float) -> np.ndarray:
        return distance <= within


def count_copies(
    distances: Mapping[str, np.ndarray], measure: Measure, within: tuple[float, ...]
) -> tuple[Copies, ...]:
    """Counts the copies that are joined to their original, by kind and in all.

    Args:
        distances: kind → float64 (copies,), distance of each copy to its original.
        measure: says when a copy is joined.
        within: the distances to try.
    """
    everything = {**distances, ALL: np.concatenate([*distances.values()])}
    return tuple(
        Copies(
            kind,
            len(distance),
            float(np.median(distance)) if len(distance) else None,
            tuple(int(measure.joins(distance, value).sum()) for value in within),
        )
        for kind, distance in everything.items()
    )


def count_pairs(
    values: np.ndarray, names: Sequence[str], group: np.ndarray, measure: Measure, within: tuple[float, ...]
) -> tuple[Pairs, Pairs]:
    """Compares all pairs of pictures.

    Args:
        values: prepared, (pictures, …).
        names: of the pictures.
        group: integers (pictures,), equal for pictures that the run has joined.
        measure: the distance.
        within: the distances to try.

    Returns:
        The pairs that the run has joined, with the farthest of them; all other pairs, with the nearest of them.
    """
    joined, others, positions = _Count(farthest=True), _Count(farthest=False), np.arange(len(values))
    for start in range(0, len(values), COMPARED_ROWS):
        block = positions[start : start + COMPARED_ROWS]
        at, right = np.nonzero(positions > block[:, None])
        distance, left = measure.across(values[block], values)[at, right], block[at]
        joins = np.stack([measure.joins(distance, value) for value in within])
        of_run = group[left] == group[right]
        for pairs, those in ((joined, of_run), (others, ~of_run)):
            pairs.add(distance[those], np.stack([left, right], 1)[those], np.count_nonzero(joins & those, axis=1))
    return joined.result(names), others.result(names)


class _Count:
    """Counts pairs, and keeps those to show: the nearest, or the farthest."""

    def __init__(self, farthest: bool) -> None:
        self.sign = -1 if farthest else 1
        self.pairs, self.joined = 0, np.zeros(1, np.int64)
        self.distance, self.rows = np.empty(0), np.empty((0, 2), np.int64)

    def add(self, distance: np.ndarray, rows: np.ndarray, joined: np.ndarray) -> None:
        """Adds pairs: distances, float64 (n,), their rows, int64 (n, 2), and how many of them each `within` joins."""
        self.pairs += len(distance)
        self.joined = self.joined + joined
        self.distance = np.concatenate([self.distance, distance])
        self.rows = np.concatenate([self.rows, rows])
        best = np.lexsort((self.rows[:, 1], self.rows[:, 0], self.sign * self.distance))[:SHOWN_PAIRS]
        self.distance, self.rows = self.distance[best], self.rows[best]

    def result(self, names: Sequence[str]) -> Pairs:
        places = zip(self.rows.tolist(), self.distance.tolist(), strict=True)
        shown = tuple(Pair(names[left], names[right], distance) for (left, right), distance in places)
        return Pairs(self.pairs, tuple(self.joined.tolist()), shown)
