"""The rows that a report shows: random kept ones, and those near a criterion's threshold and far from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from danqing.engine.recipe.criteria import Threshold
from danqing.engine.recipe.reading import Recipe
from danqing.engine.report.rows import Rows, is_flag

KEPT_SHOWN, SHOWN = 24, 5
"""Number of kept pairs shown, and of pairs in each gallery of a criterion."""
INSIDE, OUTSIDE, FARTHEST, RANDOM = "just inside", "just outside", "farthest", "random"
NEAREST = "smallest distances"
Place = tuple[int, int]
"""A row: number of its shard, and row in it."""


@dataclass
class Best:
    """The `count` rows with the smallest key, and of equal keys those with the smallest hash."""

    count: int
    found: list[tuple[float, int, Place]] = field(default_factory=list)

    def add(self, rows: Rows, chosen: np.ndarray, key: np.ndarray | None = None) -> None:
        """Looks at rows.

        Args:
            rows: of one shard.
            chosen: boolean (rows,), those to look at.
            key: float64 (rows,); None for rows in the order of their hashes.
        """
        at = np.flatnonzero(chosen)
        keys = np.zeros(len(at)) if key is None else key[at]
        hashes = rows.hash[at]
        if len(self.found) == self.count:
            worst, hash_of_worst, _ = self.found[-1]
            better = (keys < worst) | ((keys == worst) & (hashes < np.uint64(hash_of_worst)))
            at, keys, hashes = at[better], keys[better], hashes[better]
        for position in np.lexsort((hashes, keys))[: self.count].tolist():
            self.found.append((float(keys[position]), int(hashes[position]), (rows.shard, int(at[position]))))
        self.found = sorted(self.found)[: self.count]

    @property
    def places(self) -> list[Place]:
        return [place for _, _, place in self.found]


@dataclass
class Galleries:
    """The rows to show.

    Attributes:
        recipe: the criteria.
        kept: random kept rows.
        dropped: position of a criterion → name of a gallery → its rows.
    """

    recipe: Recipe
    kept: Best
    dropped: dict[int, dict[str, Best]]

    @classmethod
    def of(cls, recipe: Recipe) -> Galleries:
        """Empty galleries for the criteria of a recipe."""
        dropped = {}
        for at, criterion in enumerate(recipe.criteria):
            names: tuple[str, ...] = (NEAREST, FARTHEST, RANDOM)
            if isinstance(criterion, Threshold):
                names = (RANDOM,) if is_flag(criterion.column) else (INSIDE, OUTSIDE, FARTHEST, RANDOM)
            dropped[at] = {name: Best(SHOWN) for name in names}
        return cls(recipe, Best(KEPT_SHOWN), dropped)

    def add(self, rows: Rows, scores: Mapping[int, np.ndarray]) -> None:
        """Looks at the rows of a shard; `scores` are those of thresholds, by position."""
        kept = rows.dropped_by == -1
        self.kept.add(rows, kept)
        for at, galleries in self.dropped.items():
            criterion, dropped = self.recipe.criteria[at], rows.dropped_by == at
            if isinstance(criterion, Threshold):
                away = np.abs(scores[at][:, None] - np.array(criterion.interval.bounds)).min(1)
            else:
                away = rows.numbers("distance")
            known = np.isfinite(away)
            chosen = {
                INSIDE: (kept & known, away),
                OUTSIDE: (dropped & known, away),
                NEAREST: (dropped & known, away),
                FARTHEST: (dropped & known, -away),
                RANDOM: (dropped, None),
            }
            for name, best in galleries.items():
                best.add(rows, *chosen[name])

    def chosen(self, at: int) -> dict[str, list[Place]]:
        """The galleries of a criterion; those whose rows are all in an earlier one are left out."""
        shown: dict[str, list[Place]] = {}
        for name, best in self.dropped[at].items():
            earlier = {place for other, places in shown.items() if other != INSIDE for place in places}
            if best.places and not earlier.issuperset(best.places):
                shown[name] = best.places
        return shown if any(name != INSIDE for name in shown) else {}
