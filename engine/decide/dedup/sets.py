"""Who stays of a set of near-duplicates, and how far the others are from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from danqing.engine.core.progress import Progress
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.index import INDEXES
from danqing.engine.recipe.outcome import Recall
from danqing.kernels.neighbours.components import find_components
from danqing.kernels.neighbours.pairs import find_nearest_to_sum, measure_distances, sum_members

SETS = 1024
"""Sets whose centroids are in memory at a time: 6 MiB at 768 numbers."""

Choice = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Who stays: from members, int64 (members,), set by set, and begins, int64 (sets,), one row of every set."""


def near_sets(
    features: Features,
    within: float,
    choose: Choice,
    max_diameter: float | None,
    progress: Progress | None = None,
    found: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sets of rows chained together by a cosine distance below `within`, and who stays of each.

    Args:
        max_diameter: members farther than this from who stays leave the set and form sets among themselves.
        found: the rows' `chains`, if they are known already.

    Returns:
        By row: the smallest row of its set and who stays for it (itself, if alone), both int64, and the cosine
        distance to who stays, float64.
    """
    device, rows = features.device, np.arange(len(features))
    group = chains(features, within, progress) if found is None else found.copy()
    stays, distance = rows.copy(), np.zeros(len(rows))
    while len(rows):
        stays[rows] = representatives(group[rows], rows, choose)
        gap = device.xp.empty(len(rows))
        measure_distances.launch(device, len(rows), device.up(rows), device.up(stays[rows]), features.rows, gap)
        distance[rows] = np.where(stays[rows] == rows, 0, device.down(gap))
        rows = rows[distance[rows] > (np.inf if max_diameter is None else max_diameter)]
        if len(rows):
            group[rows] = rows[chains(features.take(rows), within, progress)]
    return group, stays, distance


def chains(
    features: Features,
    within: float,
    progress: Progress | None = None,
    earlier: np.ndarray | None = None,
    index: str = "tiles",
) -> np.ndarray:
    """The smallest row of each row's chain of neighbours: int64 (rows,).

    Args:
        earlier: the same for so many first rows, which are not compared with each other again.
        index: name of a registered index that finds all near pairs.
    """
    parent, known = _parents(features, earlier)
    INDEXES.named(index)().join(features, within, parent, known, progress)
    return features.device.down(find_components(features.device, parent))


def likely_chains(
    features: Features,
    within: float,
    recall: float,
    progress: Progress | None = None,
    earlier: np.ndarray | None = None,
    index: str = "lists",
) -> tuple[np.ndarray, Recall | None]:
    """`chains`, sooner, of which a share of near pairs below 1, but at least `recall`, need be found; and what was."""
    parent, known = _parents(features, earlier)
    measured = INDEXES.named(index)(recall).join(features, within, parent, known, progress)
    return features.device.down(find_components(features.device, parent)), measured


def _parents(features: Features, earlier: np.ndarray | None) -> tuple[Any, int]:
    xp, known = features.device.xp, 0 if earlier is None else len(earlier)
    parent = xp.arange(len(features))
    if earlier is not None:
        parent[:known] = features.device.up(earlier)
    return parent, known


def representatives(group: np.ndarray, rows: np.ndarray, choose: Choice) -> np.ndarray:
    """For every row, who stays of its set: int64 (rows,).

    Args:
        group: int64 (rows,), the same number for all rows of a set.
    """
    order = np.argsort(group, kind="stable")
    begins = np.flatnonzero(np.diff(group[order], prepend=-1))
    out = np.empty_like(rows)
    out[order] = np.repeat(choose(rows[order], begins), np.diff(begins, append=len(order)))
    return out


def first(members: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """The row that came first."""
    return members[begins]


def highest(values: np.ndarray) -> Choice:
    """The row with the highest value (float64, by row; NaN is the lowest), the first among equals."""

    def choose(members: np.ndarray, begins: np.ndarray) -> np.ndarray:
        known = np.where(np.isnan(values[members]), -np.inf, values[members])
        best = np.maximum.reduceat(known, begins)
        sizes = np.diff(begins, append=len(members))
        places = np.where(known == np.repeat(best, sizes), np.arange(len(members)), len(members))
        return members[np.minimum.reduceat(places, begins)]

    return choose


def nearest_to_centroid(features: Features) -> Choice:
    """The row nearest to the mean of the set's unit features, the first among equals."""
    device, xp = features.device, features.device.xp

    def choose(members: np.ndarray, begins: np.ndarray) -> np.ndarray:
        out, ends = members[begins], np.append(begins[1:], len(members))
        several = np.flatnonzero(ends - begins > 2)  # of two, both are equally near
        sums = xp.empty((min(SETS, len(several)), features.dimension))
        for start in range(0, len(several), SETS):
            batch = several[start : start + SETS]
            first, last = begins[batch[0]], ends[batch[-1]]
            spans = device.up(begins[batch] - first), device.up(ends[batch] - first)
            arguments = (*spans, device.up(members[first:last]), features.rows, sums)
            chosen = xp.empty(len(batch), np.int64)
            sum_members.launch(device, len(batch), *arguments)
            find_nearest_to_sum.launch(device, len(batch), *arguments, chosen)
            out[batch] = device.down(chosen)
        return out

    return choose
