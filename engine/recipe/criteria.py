"""Criteria are data: a name, a score column and the interval it must lie in.

A recipe is an ordered list of them. Nothing else in the engine decides whether a pair stays.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

FEATURES = "features"
"""The pseudo-column of near-duplicate features; no score, so that only criteria of likeness look at it."""

HASHES = ("perceptual_hash",)
"""Columns of 64 bits that may differ in a few."""
MOST_BITS = 8
"""More would join pictures that are not alike (`tests/engine/test_study.py`: others differ in 10 and more)."""


@dataclass(frozen=True)
class Interval:
    """Where a score must lie. Every bound is optional; `minimum`/`maximum` include it, `above`/`below` don't."""

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if any(bound is not None and math.isnan(bound) for bound in astuple(self)):
            raise ValueError("a bound must be a number")
        if self.minimum is not None and self.above is not None:
            raise ValueError("give either 'min' (included) or 'above' (excluded), not both")
        if self.maximum is not None and self.below is not None:
            raise ValueError("give either 'max' (included) or 'below' (excluded), not both")
        low, high = self._first(self.minimum, self.above), self._first(self.maximum, self.below)
        if low is None and high is None:
            raise ValueError("give at least one of 'min', 'max', 'above', 'below'")
        if low is not None and high is not None:
            open_ended = self.above is not None or self.below is not None
            if low > high or (low == high and open_ended):
                raise ValueError(f"no value lies in {self}")

    @staticmethod
    def _first(included: float | None, excluded: float | None) -> float | None:
        return excluded if included is None else included

    def holds(self, scores: Any) -> Any:
        """Boolean array: which scores lie inside. NaN (no score) never does."""
        inside = scores == scores
        if self.minimum is not None:
            inside &= scores >= self.minimum
        if self.maximum is not None:
            inside &= scores <= self.maximum
        if self.above is not None:
            inside &= scores > self.above
        if self.below is not None:
            inside &= scores < self.below
        return inside

    def around(self, name: str) -> str:
        """The rule in words of mathematics: `5 ≤ words ≤ 60`, `shortest_edge > 100`."""
        low = None if self.minimum is None else (self.minimum, "≤", "≥")
        low = (self.above, "<", ">") if self.above is not None else low
        high = None if self.maximum is None else (self.maximum, "≤")
        high = (self.below, "<") if self.below is not None else high
        if low and high:
            return f"{low[0]:.4g} {low[1]} {name} {high[1]} {high[0]:.4g}"
        return f"{name} {low[2]} {low[0]:.4g}" if low else f"{name} {high[1]} {high[0]:.4g}" if high else name

    def __str__(self) -> str:
        return self.around("score")


@dataclass(frozen=True)
class Criterion:
    """A row stays if its score in `column` lies in `interval`."""

    name: str
    column: str
    interval: Interval
    group: str = ""
    step: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def rule(self) -> str:
        return self.interval.around(self.column)


@dataclass(frozen=True)
class Redundancy:
    """Of every set of rows chained together by likeness, one row stays.

    Two rows are joined when the cosine distance of their features is below `within`, when their hashes (`column`)
    differ in at most `within` bits, or, in any other column, when their values are equal (`within` 0). Sets are the
    connected components (Union-Find).

    `keep`: who stays, the first one among equals: the row nearest to the set's `centroid` (features only, and their
    default), the `first`, or the one with the `highest:<column>`. `max_diameter`: members farther than this from who
    stays leave the set and form sets among themselves. `recall`: the share of near pairs that must be found; below 1,
    the search is quicker, and the share is measured.
    """

    name: str
    within: float
    column: str = FEATURES
    keep: str = ""
    max_diameter: float | None = None
    recall: float = 1.0
    group: str = ""
    step: str = ""

    def __post_init__(self) -> None:
        if not self.keep:
            object.__setattr__(self, "keep", "centroid" if self.column == FEATURES else "first")
        allowed = ("centroid", "first") if self.column == FEATURES else ("first",)
        if self.keep not in allowed and not self.highest:
            raise ValueError(f"'keep' is {', '.join(allowed)} or highest:<column>, not {self.keep!r}")
        if self.column == FEATURES:
            _check_distance("within", self.within)
            if self.max_diameter is not None:
                _check_distance("max_diameter", self.max_diameter)
            if not 0 < self.recall <= 1:
                raise ValueError(f"'recall' is a share above 0, at most 1, not {self.recall:g}")
            return
        if self.max_diameter is not None:
            raise ValueError("'max_diameter' is a distance of features; a column of other values has none")
        if self.recall != 1:
            raise ValueError("'recall' is of features; a column of other values is always searched through")
        most = MOST_BITS if self.column in HASHES else 0
        if self.within not in range(most + 1):
            bits = f"a number of bits from 0 to {most}" if most else "0: its values are equal or not"
            raise ValueError(f"'within' of {self.column} is {bits}, not {self.within:g}")

    @property
    def highest(self) -> str | None:
        """The column whose highest value stays."""
        return self.keep.partition("highest:")[2] or None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column, self.highest) if self.highest else (self.column,)

    @property
    def rule(self) -> str:
        if self.column == FEATURES:
            like = f"cosine distance < {self.within:g}"
        else:
            like = f"{self.column}: ≤ {self.within:g} bits differ" if self.within else f"equal {self.column}"
        most = f", ≤ {self.max_diameter:g} from it" if self.max_diameter is not None else ""
        kept = "" if self.keep in ("centroid", "first") else f", {self.keep.replace(':', ' ')} stays"
        found = "" if self.recall == 1 else f", recall ≥ {self.recall:g}"
        return f"one of each set, {like}{most}{kept}{found}"


@dataclass(frozen=True)
class Apart:
    """A row stays unless the cosine distance of its features to those of a row of another run is below `within`.

    `folder`: that run; its kept rows count, or all where it has no verdicts.
    """

    name: str
    within: float
    folder: str
    group: str = ""
    step: str = ""

    column = FEATURES
    columns = (FEATURES,)

    def __post_init__(self) -> None:
        _check_distance("within", self.within)

    @property
    def rule(self) -> str:
        return f"cosine distance ≥ {self.within:g} to all of {Path(self.folder).name}"


def _check_distance(key: str, value: float) -> None:
    if not 0 < value < 2:
        raise ValueError(f"'{key}' is a cosine distance between 0 and 2, not {value:g}")


AnyCriterion = Criterion | Redundancy | Apart
