"""The criteria as the report shows them: distribution, threshold, what-if and pairs to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from danqing.engine.recipe.criteria import Criterion, Exclusion, Redundancy, Threshold
from danqing.engine.report.figures import Figure, Mark, Plot, Series, border, histogram
from danqing.engine.report.numbers import KINDS, Distribution, is_compared
from danqing.engine.report.rows import units_of
from danqing.engine.report.tiles import Tile
from danqing.engine.report.view import View, counted, slug

COSINES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, -0.1, -0.2, -0.4, -0.6)
"""Ticks of the second axis of the alignment."""
KIND_NAMES = {"kept": "kept", "dropped": "dropped by this criterion", "other": "dropped by another"}


@dataclass(frozen=True)
class CriterionItem:
    """One criterion as the page shows it."""

    name: str
    anchor: str
    title: str
    rule: str
    counts: str
    figure: Figure | None
    what_if: dict[str, Any] | None
    explanation: str
    galleries: list[tuple[str, list[tuple[str, list[Tile]]]]]


def criterion_items(views: Sequence[View]) -> list[CriterionItem]:
    """The criteria of all runs, in the order of the first run's recipe."""
    criteria = {criterion.name: criterion for view in views for criterion in view.recipe.criteria}
    return [_item(views, criterion) for criterion in criteria.values()]


def _item(views: Sequence[View], criterion: Criterion) -> CriterionItem:
    name = criterion.name
    lines = [next((line for line in view.funnel.lines if line.criterion == name), None) for view in views]
    distributions = [view.distributions.get(name) for view in views]
    counts = []
    for letter, line in zip("AB", lines, strict=False):
        if line:
            which = f"{letter}: " if len(views) > 1 else ""
            reached = f"{which}{line.left + line.dropped:,} pairs reached this criterion"
            counts.append(f"{reached}; it dropped {line.dropped:,} ({line.share:.2%})")
    rules = [line.measured_rule for line in lines if line]
    galleries = []
    for view in views:
        at = next((at for at, own in enumerate(view.recipe.criteria) if own.name == name), None)
        shown = view.shown[at] if at is not None else {}
        tiles = [(title, view.tiles.tiles(places, criterion)) for title, places in shown.items()]
        galleries.append((view.name, tiles))
    single = distributions[0] if len(views) == 1 else None
    drawings = [_distribution(found, len(views) == 1) if found else None for found in distributions]
    return CriterionItem(
        name,
        f"criterion-{slug(name)}",
        criterion.step or name,
        " · ".join(dict.fromkeys(rules)) or criterion.rule,
        ". ".join(counts),
        Figure(f"criterion-{slug(name)}", name, drawings) if any(drawings) else None,
        single.what_if() if single else None,
        _explanation(criterion, views[0]) if len(views) == 1 else "",
        galleries,
    )


def _explanation(criterion: Criterion, view: View) -> str:
    if not is_compared(criterion):
        return ""
    sizes = view.numbers.group_sizes
    distance = "The distance from each dropped pair to the pair that was kept in its place."
    if not sizes or not isinstance(criterion, Redundancy):
        return distance
    share = view.numbers.groups_share
    where = "the run" if share == 1 else f"a sample of {share:.2%} of the groups"
    return (
        f"{distance} In a chain of near pairs it can exceed the threshold. Near-duplicates in {where}: "
        f"{counted(sizes.total(), 'group')}, the largest with {max(sizes):,} pairs. "
        f"To use another threshold: danqing decide --set {criterion.name}.within=…"
    )


def _distribution(found: Distribution, movable: bool) -> Markup:
    criterion, upper = found.criterion, []
    if isinstance(criterion, Threshold):
        across = units_of(criterion.column)
        sides = {"min": "below", "above": "below", "max": "above", "below": "above"}
        signs = {"min": "≥", "above": ">", "max": "≤", "below": "<"}
        bounds = criterion.interval.to_dict()
        marks = [
            Mark(border(found.edges, key, value), f"{signs[key]} {value:.4g}", sides[key])
            for key, value in bounds.items()
        ]
        keys = list(bounds) if movable and len(found.candidates) else []
        if criterion.column == "alignment_distance":  # of unit vectors: d² = 2 - 2 cos
            at = [(math.sqrt(2 - 2 * cosine), f"{cosine:g}") for cosine in COSINES]
            upper = [tick for tick in at if found.scale.low <= tick[0] <= found.scale.high]
    else:
        assert isinstance(criterion, (Redundancy, Exclusion))
        across, keys = f"distance of {criterion.column} to the pair kept instead", []
        marks = [Mark(criterion.within, f"within {criterion.within:g}")] if criterion.within else []
    series = [Series(KIND_NAMES[kind], kind, counts) for kind, counts in zip(KINDS, found.counts.tolist(), strict=True)]
    plot = Plot(
        f"{criterion.name}: histogram of {across}; {criterion.rule}",
        across,
        upper=upper,
        upper_label="cosine",
        movable=keys,
    )
    return histogram(plot, found.scale, found.edges, series, marks)
