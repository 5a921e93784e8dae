"""What a criterion decides, in the same form for every kind of criterion."""

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


def _none() -> np.ndarray:
    return np.empty(0, np.int64)


def _no_uids() -> np.ndarray:
    return np.empty((0, 2), np.uint64)


@dataclass(frozen=True)
class Outcome:
    """The decision of one criterion on the rows it judged. Rows are int64 positions in the run.

    Attributes:
        passed: rows that pass; every other judged row is dropped.
        members: rows that belong to a near-duplicate group of two or more.
        group: of each member, the first row of its group.
        duplicates: rows that are dropped in favour of another one.
        kept_instead: of each duplicate, the uid of that row, uint64 (n, 2): its upper and lower half.
        distance: of each duplicate, the distance to that row, float64.
        recall: of a near-duplicate search that may miss pairs.
        index: name of the index that searched the features, if one did.
    """

    passed: np.ndarray
    members: np.ndarray = field(default_factory=_none)
    group: np.ndarray = field(default_factory=_none)
    duplicates: np.ndarray = field(default_factory=_none)
    kept_instead: np.ndarray = field(default_factory=_no_uids)
    distance: np.ndarray = field(default_factory=_none)
    recall: Recall | None = None
    index: str = ""
