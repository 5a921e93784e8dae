"""The decision of a criterion, in the same form for every kind of criterion."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Recall:
    """Measured recall of a near-duplicate search: `joined` of `pairs` true neighbours are in the same group."""

    joined: int
    pairs: int

    @property
    def share(self) -> float:
        return self.joined / self.pairs if self.pairs else float("nan")

    def __str__(self) -> str:
        return f"{self.share:.5f} of {self.pairs:,} pairs" if self.pairs else "no pairs to measure it by"


def position_type(rows: int) -> type[np.signedinteger]:
    """The type of positions among `rows` rows. DECIDE holds several of each row, and int32 takes half the memory."""
    return np.int32 if rows <= np.iinfo(np.int32).max else np.int64


def positions_of(chosen: np.ndarray) -> np.ndarray:
    """The positions of the true values of a boolean array, ascending.

    >>> positions_of(np.array([True, False, True]))
    array([0, 2], dtype=int32)
    """
    return np.flatnonzero(chosen).astype(position_type(len(chosen)))


def _none() -> np.ndarray:
    return np.empty(0, np.int32)


@dataclass(frozen=True)
class Outcome:
    """The decision of one criterion on the rows it judged. Rows are positions in the run (`position_type`).

    Attributes:
        passed: rows that pass; every other judged row is dropped.
        members: rows that belong to a near-duplicate group of two or more.
        group: of each member, the first row of its group.
        duplicates: rows that are dropped in favour of another one.
        kept_instead: of each duplicate, that row, (n,); or, of a row of another run, the two halves of its uid, uint64
            (n, 2).
        distance: of each duplicate, the distance to that row, float64.
        saved: of each group that a surviving row represents instead of one that later criteria drop: both rows, (n, 2);
            None if the criterion does not prefer survivors.
        recall: of a near-duplicate search that may miss pairs.
        index: name of the index that searched the features, if one did.
    """

    passed: np.ndarray
    members: np.ndarray = field(default_factory=_none)
    group: np.ndarray = field(default_factory=_none)
    duplicates: np.ndarray = field(default_factory=_none)
    kept_instead: np.ndarray = field(default_factory=_none)
    distance: np.ndarray = field(default_factory=_none)
    saved: np.ndarray | None = None
    recall: Recall | None = None
    index: str = ""
