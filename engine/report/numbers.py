"""The numbers of a run's report: distributions of the scores, and what other thresholds would keep.

One pass over the shards, one shard in memory at a time. Axes and candidates of thresholds are chosen before it, from
the sample (`engine.report.rows`).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc

from danqing.engine.recipe.criteria import Criterion, Exclusion, Redundancy, RowCriterion, Threshold
from danqing.engine.recipe.interval import as_stored
from danqing.engine.recipe.reading import Recipe
from danqing.engine.report.figures import Scale, border, choose_scale
from danqing.engine.report.galleries import Galleries
from danqing.engine.report.rows import Rows, Sample, are_integers, is_flag, read_rows
from danqing.engine.run.folder import Run

CANDIDATES = 100
"""Approximate number of values that a threshold can be moved to."""
MAX_INTEGER_CANDIDATES = 160
"""Integers are all candidates if there are at most this many."""
MAX_GROUPS = 1_000_000
"""Approximate maximum number of groups that are counted; if a run has more rows, a sample of its groups, by hash."""
MAX_ERROR_KINDS = 1000
MAX_JOINT_SCORES = 150_000
"""Maximum number of scores in the table that counts several moved thresholds: 400 kB of the page."""
KINDS = ("kept", "dropped", "other")
"""Rows of a histogram: kept, dropped by this criterion, dropped by another one."""


@dataclass
class Count:
    """Cumulative counts of the rows of a population at the candidates of a threshold.

    Attributes:
        below: int64 (candidates,), rows with a lower score.
        up_to: int64 (candidates,), rows with a lower or an equal score.
        total: rows.
    """

    below: np.ndarray
    up_to: np.ndarray
    total: int = 0

    @classmethod
    def of(cls, candidates: np.ndarray) -> Count:
        return cls(np.zeros(len(candidates), np.int64), np.zeros(len(candidates), np.int64))

    def add(self, scores: np.ndarray, candidates: np.ndarray) -> None:
        """Counts rows."""
        scores = np.sort(_at_candidates(scores, candidates))
        self.below += np.searchsorted(scores, candidates, "left")
        self.up_to += np.searchsorted(scores, candidates, "right")
        self.total += len(scores)

    def to_dict(self) -> dict[str, Any]:
        return {"below": self.below.tolist(), "up_to": self.up_to.tolist(), "total": self.total}


def _at_candidates(scores: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Replaces the scores that equal a candidate, as `Interval.holds` compares them, by the candidate."""
    stored = np.array([as_stored(value) for value in candidates.tolist()])
    place = np.searchsorted(stored, scores).clip(max=max(len(stored) - 1, 0))
    return np.where(stored[place] == scores, candidates[place], scores) if len(stored) else scores


@dataclass
class Distribution:
    """The scores of one criterion.

    Attributes:
        criterion: the criterion.
        scale, edges: the axis and the borders of its bins.
        counts: int64 (kinds, bins), see `KINDS`.
        candidates: float64 (n,), values that the threshold can be moved to; empty if it cannot.
        exact: of rows that pass every other criterion before the first comparison of rows; None if the criterion comes
            after it.
        about: of rows that would be kept if the groups of near-duplicates stayed what they are.
        unknown: of rows that pass those other criteria for which they have a score; a gate dropped them before they got
            the rest.
    """

    criterion: Criterion
    scale: Scale
    edges: np.ndarray
    counts: np.ndarray
    candidates: np.ndarray
    exact: Count | None
    about: Count
    unknown: Count

    def what_if(self) -> dict[str, Any] | None:
        """Data for moving the threshold on the page; None if it cannot be moved."""
        if not len(self.candidates) or not isinstance(self.criterion, Threshold):
            return None
        bounds = self.criterion.interval.to_dict()
        return {
            "values": self.candidates.tolist(),
            "at": {
                key: [round(self.scale.at(border(self.edges, key, value)), 3) for value in self.candidates.tolist()]
                for key in bounds
            },
            "bounds": {key: int(np.searchsorted(self.candidates, bound)) for key, bound in bounds.items()},
            "exact": self.exact.to_dict() if self.exact else None,
            "about": self.about.to_dict(),
            "unknown": self.unknown.to_dict(),
        }


@dataclass
class Joint:
    """The scores by which the page counts several moved thresholds together.

    Attributes:
        movable: positions in the recipe of the criteria before the first comparison of rows whose threshold can move.
        codes: of each shard, uint16 (criteria, rows): how many candidates are below the score, plus how many are not
            above it. Rows without all scores, and those that fail a criterion that cannot move, are left out.
        gated: whether some rows lack scores since a gate dropped them: lower demands could let them pass.
    """

    movable: list[int]
    codes: list[np.ndarray] = field(default_factory=list)
    gated: bool = False

    def to_dict(self, criteria: Sequence[Criterion]) -> dict[str, Any]:
        codes = np.concatenate(self.codes, axis=1) if self.codes else np.empty((len(self.movable), 0))
        encoded = b64encode(codes.astype("<u2").tobytes()).decode()
        return {"criteria": [criteria[at].name for at in self.movable], "codes": encoded, "gated": self.gated}


@dataclass
class Numbers:
    """Everything that is counted over all rows.

    Attributes:
        distributions: of the criteria that have scores or distances, in the recipe's order.
        errors: kind of error → rows; numbers in errors are replaced by N.
        group_sizes: size → groups of near-duplicates.
        groups_share: share of the groups that is counted.
        joint: None if the run is large or fewer than two thresholds can move.
        galleries: the rows to show.
    """

    distributions: list[Distribution]
    galleries: Galleries
    errors: Counter[str] = field(default_factory=Counter)
    group_sizes: Counter[int] = field(default_factory=Counter)
    groups_share: float = 1.0
    joint: Joint | None = None


def is_compared(criterion: Criterion) -> bool:
    """Whether a criterion compares rows, so that its outcome does not follow from the row's own scores."""
    return not isinstance(criterion, RowCriterion)


def plan_distribution(
    criterion: Criterion, samples: Sequence[Sample], recipes: Sequence[Recipe], counts_exactly: bool
) -> Distribution | None:
    """Chooses a criterion's axis and the candidates of its threshold; None if there is nothing to show.

    Args:
        criterion: the criterion.
        samples, recipes: of the runs that are shown on the same axis.
        counts_exactly: whether the criterion comes before the first one that compares rows.
    """
    candidates = np.empty(0)
    if isinstance(criterion, Threshold):
        values = np.concatenate([sample.numbers(criterion.column) for sample in samples])
        same = [
            c for recipe in recipes for c in recipe.criteria if c.name == criterion.name and isinstance(c, Threshold)
        ]
        bounds = [bound for c in same for bound in c.interval.bounds]
        if not len(values):
            return None
        integers = are_integers(values, criterion.column)
        scale, edges = choose_scale(values, bounds, integers)
        if not is_flag(criterion.column):
            candidates = choose_candidates(values, bounds, integers)
    elif isinstance(criterion, (Redundancy, Exclusion)):
        dropped = (sample.table.filter(pc.field("dropped_by") == criterion.name) for sample in samples)
        values = np.concatenate([table["distance"].drop_null().to_numpy() for table in dropped])
        if not len(values):
            return None
        scale, edges = choose_scale(values, [0.0, criterion.within], are_integers(values) and criterion.within > 0)
    else:
        return None
    counts = np.zeros((len(KINDS), len(edges) - 1), np.int64)
    exact = Count.of(candidates) if counts_exactly else None
    return Distribution(criterion, scale, edges, counts, candidates, exact, Count.of(candidates), Count.of(candidates))


def choose_candidates(values: np.ndarray, bounds: Sequence[float], integers: bool) -> np.ndarray:
    """Chooses values for a threshold: quantiles and steps of the range, in three digits, and the recipe's bounds.

    Args:
        values: float64 (n,), scores of the sample.
        bounds: of the recipe.
        integers: whether the scores are integers.

    >>> choose_candidates(np.array([1.0, 2.0, 4.0]), [3.0], True)
    array([0., 1., 2., 3., 4., 5.])
    """
    low, high = min(values.min(), *bounds), max(values.max(), *bounds)
    if integers and high - low <= MAX_INTEGER_CANDIDATES:
        return np.unique([*np.arange(max(low - 1, 0) if low >= 0 else low - 1, high + 2), *bounds])
    quantiles = np.quantile(values, np.linspace(0, 1, CANDIDATES - CANDIDATES // 4))
    first, last = np.percentile(values, [1, 99]).tolist()
    steps = np.linspace(first, last, CANDIDATES // 4)
    rounded = [float(f"{value:.3g}") for value in [*quantiles, *steps]]
    if integers:
        rounded = [float(round(value)) for value in rounded]
    return np.unique([*rounded, *bounds])


def collect(run: Run, recipe: Recipe, own: Sample, samples: Sequence[Sample], recipes: Sequence[Recipe]) -> Numbers:
    """Counts the rows of a run.

    Args:
        run: a decided run.
        recipe: the one it was decided with.
        own: the run's own sample.
        samples, recipes: of the runs that are shown side by side.
    """
    criteria = recipe.criteria
    compared = [at for at, criterion in enumerate(criteria) if is_compared(criterion)]
    first_compared = compared[0] if compared else len(criteria)
    planned = [plan_distribution(c, samples, recipes, at < first_compared) for at, c in enumerate(criteria)]
    numbers = Numbers([found for found in planned if found], Galleries.of(recipe))
    exact = ((at, found) for at, found in enumerate(planned) if found and found.exact)
    movable = {at: found.candidates for at, found in exact if len(found.candidates)}
    if len(movable) > 1 and own.rows * len(movable) <= MAX_JOINT_SCORES:
        numbers.joint = Joint(list(movable))
    numbers.groups_share = min(1.0, MAX_GROUPS / max(own.rows, 1))
    sizes: Counter[int] = Counter()
    for rows in read_rows(run, recipe, ["error", "gated_at", *recipe.columns]):
        judged = _Judged(rows, criteria, first_compared)
        for at, found in enumerate(planned):
            if found:
                judged.count(at, found)
        if numbers.joint:
            numbers.joint.codes.append(judged.codes(movable))
            numbers.joint.gated |= bool((judged.waits & (judged.missing[0] > 0)).any())
        numbers.galleries.add(rows, judged.scores)
        _count_errors(rows, numbers.errors)
        _count_members(rows, numbers.groups_share, sizes)
    numbers.group_sizes.update(Counter(size for size in sizes.values() if size > 1))
    return numbers


class _Judged:
    """The criteria that judge rows alone: those that each row of a shard fails, and those without a score."""

    def __init__(self, rows: Rows, criteria: Sequence[Criterion], first_compared: int) -> None:
        self.rows, self.criteria, self.first_compared = rows, criteria, first_compared
        self.scores: dict[int, np.ndarray] = {}
        self.fails: dict[int, np.ndarray] = {}
        count = len(rows.table)
        self.failed, self.missing = ([np.zeros(count, np.int16) for _ in range(2)] for _ in range(2))
        """Criteria that each row fails, and lacks the score of: of those before the first comparison, and of all."""
        for at, criterion in enumerate(criteria):
            if isinstance(criterion, Threshold):
                scores = rows.numbers(criterion.column)
                self.scores[at] = scores
                self.fails[at] = np.isfinite(scores) & ~criterion.interval.holds(scores)
                for which in (0, 1) if at < first_compared else (1,):
                    self.failed[which] += self.fails[at]
                    self.missing[which] += ~np.isfinite(scores)
        gated = rows.table["gated_at"].is_valid() if "gated_at" in rows.table.column_names else None
        error = rows.table["error"].is_valid()
        self.waits = np.zeros(count, bool) if gated is None else np.asarray(pc.and_not(gated, error))

    def codes(self, candidates: Mapping[int, np.ndarray]) -> np.ndarray:
        """See `Joint.codes`; `candidates` are those of each criterion that can move."""
        fixed = self.failed[0] - sum(self.fails[at] for at in candidates)
        chosen = (fixed == 0) & (self.missing[0] == 0)
        return np.stack(
            [
                np.searchsorted(values, scores) + np.searchsorted(values, scores, "right")
                for at, values in candidates.items()
                for scores in [_at_candidates(self.scores[at][chosen], values)]
            ]
        )

    def count(self, at: int, found: Distribution) -> None:
        """Counts the rows in a criterion's distribution."""
        dropped_by = self.rows.dropped_by
        scores = self.scores[at] if at in self.scores else self.rows.numbers("distance")
        known = np.isfinite(scores) if at in self.scores else np.isfinite(scores) & (dropped_by == at)
        clipped = scores.clip(found.edges[0], found.edges[-1])
        for kind, chosen in enumerate((dropped_by == -1, dropped_by == at, (dropped_by != -1) & (dropped_by != at))):
            found.counts[kind] += np.histogram(clipped[chosen & known], found.edges)[0]
        if not len(found.candidates):
            return
        for which, count in enumerate((found.exact, found.about)):
            if count is None:
                continue
            others = (self.failed[which] - self.fails[at] == 0) & known
            scored = self.missing[which] == 0
            if which == 1:
                others &= (dropped_by == -1) | (dropped_by == at)
            count.add(scores[others & scored], found.candidates)
        widest = 0 if found.exact else 1
        unknown = (self.failed[widest] - self.fails[at] == 0) & known & (self.missing[widest] > 0) & self.waits
        found.unknown.add(scores[unknown & (dropped_by == at)], found.candidates)


def _count_errors(rows: Rows, errors: Counter[str]) -> None:
    for entry in rows.table["error"].drop_null().value_counts().to_pylist():
        kind = re.sub(r"\d+", "N", entry["values"])
        errors[kind if kind in errors or len(errors) < MAX_ERROR_KINDS else "other errors"] += entry["counts"]


def _count_members(rows: Rows, share: float, sizes: Counter[int]) -> None:
    """Counts the members of groups; of a share of the groups, chosen by hash, if there can be many."""
    group = rows.table["group"].to_numpy()
    group = group[group >= 0]
    if share < 1:
        group = group[group.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) < np.uint64(int(share * (2**64 - 1)))]
    found, counts = np.unique(group, return_counts=True)
    sizes.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
