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


@dataclass(frozen=True)
class Outcome:
    """The decision of one criterion on the rows it judged. Rows are int64 positions in the run.

    Attributes:
        passed: rows that pass; every other judged row is dropped.
        members: rows that belong to a near-duplicate group of two or more.
        group: of each member, the first row of its group.
        duplicates: rows that are dropped in favour of another one.
        kept_instead: of each duplicate, that row, int64 (n,); or, of a row of another run, the upper and the lower half
            of its uid, uint64 (n, 2).
        distance: of each duplicate, the distance to that row, float64.
        saved: of each group that a surviving row represents instead of one that later criteria drop: both rows, int64
            (n, 2); None if the criterion does not prefer survivors.
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
