"""The interval that a score must lie in."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from danqing.engine.core.columns import Range

BOUNDS = {"min": "minimum", "max": "maximum", "above": "above", "below": "below"}
"""Key of a recipe → attribute of `Interval`."""

COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "minimum": operator.ge, "maximum": operator.le, "above": operator.gt, "below": operator.lt
}  # fmt: skip
FROM_BELOW = (operator.ge, operator.gt)
"""The comparisons that bound the scores from below."""


@dataclass(frozen=True)
class Interval:
    """The interval that a score must lie in. `minimum` and `maximum` include the bound, `above` and `below` do not.

    A score that equals the bound in float32 is the bound, since most scores are stored in float32: 3 of 5 words (0.6)
    must not exceed a maximum of 0.6.

    >>> Interval(minimum=5, maximum=60).around("words")
    '5 ≤ words ≤ 60'
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.bounds)):
            raise ValueError("a bound must be a finite number; leave it out if there is none")
        if self.minimum is not None and self.above is not None:
            raise ValueError("give either 'min' (included) or 'above' (excluded), not both")
        if self.maximum is not None and self.below is not None:
            raise ValueError("give either 'max' (included) or 'below' (excluded), not both")
        if not self.bounds:
            raise ValueError("give at least one of 'min', 'max', 'above', 'below'")
        low = self.above if self.minimum is None else self.minimum
        high = self.below if self.maximum is None else self.maximum
        if self.excludes((low, high)):
            raise ValueError(f"no value lies in {self}")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Interval:
        """Makes the interval of a recipe's line; keys other than `BOUNDS` are ignored."""
        return cls(**{BOUNDS[key]: value for key, value in values.items() if key in BOUNDS})

    def to_dict(self) -> dict[str, float]:
        """The inverse of `read`: the bounds that are given."""
        bounds = {key: getattr(self, attribute) for key, attribute in BOUNDS.items()}
        return {key: bound for key, bound in bounds.items() if bound is not None}

    @property
    def bounds(self) -> list[float]:
        """The bounds that are given."""
        return [bound for bound in astuple(self) if bound is not None]

    @property
    def _comparisons(self) -> list[tuple[Callable[[Any, Any], Any], float]]:
        """The given bounds, each with its comparison: a score must satisfy `compare(score, bound)`."""
        bounds = ((compare, getattr(self, attribute)) for attribute, compare in COMPARISONS.items())
        return [(compare, bound) for compare, bound in bounds if bound is not None]

    def holds(self, scores: Any) -> Any:
        """Boolean array of the scores' shape: whether each lies in the interval. NaN (no score) never does."""
        inside = scores == scores
        for compare, bound in self._comparisons:
            within, stored = compare(scores, bound), as_stored(bound)
            includes_bound = compare(bound, bound)
            inside &= (within | (scores == stored)) if includes_bound else (within & (scores != stored))
        return inside

    def excludes(self, values: Range) -> bool:
        """Whether no value of a range lies in the interval."""
        low, high = _ends(values)
        return not all(compare(high if compare in FROM_BELOW else low, bound) for compare, bound in self._comparisons)

    def includes(self, values: Range) -> bool:
        """Whether every value of a range lies in the interval."""
        low, high = _ends(values)
        return all(compare(low if compare in FROM_BELOW else high, bound) for compare, bound in self._comparisons)

    def around(self, name: str) -> str:
        """The interval as mathematics: `5 ≤ words ≤ 60`, `shortest_edge > 100`."""
        low = None if self.minimum is None else (self.minimum, "≤", "≥")
        low = (self.above, "<", ">") if self.above is not None else low
        high = None if self.maximum is None else (self.maximum, "≤")
        high = (self.below, "<") if self.below is not None else high
        if low and high:
            return f"{low[0]:.4g} {low[1]} {name} {high[1]} {high[0]:.4g}"
        return f"{name} {low[2]} {low[0]:.4g}" if low else f"{name} {high[1]} {high[0]:.4g}" if high else name

    def __str__(self) -> str:
        return self.around("score")


def as_stored(bound: float) -> float:
    """The fraction as a column of float32 stores it; an integer itself, since integers are stored exactly."""
    return bound if bound == int(bound) else float(np.float32(bound))


def _ends(values: Range) -> tuple[float, float]:
    low, high = values
    return -math.inf if low is None else low, math.inf if high is None else high
