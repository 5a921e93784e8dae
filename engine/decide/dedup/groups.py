"""Groups of near-duplicates: components of neighbours, the representative of each group, and the distances to it."""

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

GROUPS_PER_BATCH = 1024
"""Groups whose centroids are in memory at the same time: 6 MiB for 768 dimensions."""

Choice = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Chooses representatives: members, int64 (members,), sorted by group; begins, int64 (groups,), where each group begins
→ one row of every group, int64 (groups,)."""


def near_groups(
    features: Features,
    within: float,
    choose: Choice,
    max_diameter: float | None,
    progress: Progress | None = None,
    found: np.ndarray | None = None,
    index: str = "tiles",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Forms groups of rows that are connected by pairs below a cosine distance, each with a representative.

    Args:
        features: the rows.
        within: the cosine distance.
        choose: chooses the representatives.
        max_diameter: members farther than this from their representative leave the group and form groups among
            themselves; None: no limit.
        progress: receives the number of comparisons.
        found: the `near_components` of the rows, if they are known.
        index: as in `near_components`.

    Returns:
        Three arrays (rows,) on the host: the smallest row of the group, int64; the representative, int64 (the row
        itself if it is in no group); and the cosine distance to the representative, float64.
    """
    device, rows = features.device, np.arange(len(features))
    group = near_components(features, within, progress, index=index) if found is None else found.copy()
    representative, distance = rows.copy(), np.zeros(len(rows))
    while len(rows):
        representative[rows] = representatives(group[rows], rows, choose)
        gap = device.xp.empty(len(rows))
        measure_distances.launch(
            device, len(rows), device.up(rows), device.up(representative[rows]), features.rows, gap
        )
        distance[rows] = np.where(representative[rows] == rows, 0, device.down(gap))
        rows = rows[distance[rows] > (np.inf if max_diameter is None else max_diameter)]
        if len(rows):
            group[rows] = rows[near_components(features.take(rows), within, progress, index=index)]
    return group, representative, distance


def near_components(
    features: Features,
    within: float,
    progress: Progress | None = None,
    earlier: np.ndarray | None = None,
    index: str = "tiles",
) -> np.ndarray:
    """Finds the connected components of the rows, where pairs below a cosine distance are connected.

    Args:
        features: the rows.
        within: the cosine distance.
        progress: receives the number of comparisons.
        earlier: the components of the first len(earlier) rows, which are not compared with each other again.
        index: name of a registered index that finds all near pairs.

    Returns:
        int64 (rows,), on the host: the smallest row of each row's component.
    """
    parent, known = _parents(features, earlier)
    INDEXES.named(index)().join(features, within, parent, known, progress)
    return features.device.down(find_components(features.device, parent))


def likely_components(
    features: Features,
    within: float,
    recall: float,
    progress: Progress | None = None,
    earlier: np.ndarray | None = None,
    index: str = "lists",
) -> tuple[np.ndarray, Recall | None]:
    """Finds `near_components` faster, from at least the share `recall` of the near pairs.

    Args:
        features: the rows.
        within: the cosine distance.
        recall: the share of the near pairs that must end up in one component, 0 to 1.
        progress: receives the number of comparisons.
        earlier: as in `near_components`.
        index: name of a registered index.

    Returns:
        int64 (rows,), on the host, as `near_components`; and the measured recall, None if all near pairs were found.
    """
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
    """Returns the representative of every row's group: int64 (rows,).

    Args:
        group: int64 (rows,), the same number for all rows of a group.
        rows: int64 (rows,), the row numbers that `choose` gets.
        choose: chooses the representatives.
    """
    order = np.argsort(group, kind="stable")
    begins = np.flatnonzero(np.diff(group[order], prepend=-1))
    out = np.empty_like(rows)
    out[order] = np.repeat(choose(rows[order], begins), np.diff(begins, append=len(order)))
    return out


def passing(representative: np.ndarray, choose: Choice, count: int) -> np.ndarray:
    """Chooses the rows of each group that pass: the representative, then that of the others, and so on.

    Args:
        representative: int64 (rows,), of each row's group.
        choose: chooses the representatives.
        count: largest number of rows of a group that pass.

    Returns:
        Boolean (rows,).
    """
    passes: np.ndarray = representative == np.arange(len(representative))
    for _ in range(count - 1):
        rest = np.flatnonzero(~passes)
        if not len(rest):
            break
        passes[representatives(representative[rest], rest, choose)] = True
    return passes


def among(choose: Choice, survive: Callable[[np.ndarray], np.ndarray]) -> Choice:
    """Chooses among the members that survive; among all members of a group in which none does.

    Args:
        choose: chooses among them.
        survive: rows, int64 (n,) → boolean (n,). It is asked about rows of groups of two or more.
    """

    def chosen(members: np.ndarray, begins: np.ndarray) -> np.ndarray:
        sizes = np.diff(begins, append=len(members))
        several = np.repeat(sizes > 1, sizes)
        candidate = np.ones(len(members), bool)
        candidate[several] = survive(members[several])
        candidate |= ~np.repeat(np.logical_or.reduceat(candidate, begins), sizes)
        counts = np.add.reduceat(candidate, begins, dtype=np.int64)
        return choose(members[candidate], np.cumsum(counts) - counts)

    return chosen


def first(members: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Chooses the first row of each group (a `Choice`)."""
    return members[begins]


def highest(values: np.ndarray) -> Choice:
    """Chooses the row with the highest value; of equal values, the first row.

    Args:
        values: float64 (rows,); NaN is lower than all numbers.
    """

    def choose(members: np.ndarray, begins: np.ndarray) -> np.ndarray:
        known = np.where(np.isnan(values[members]), -np.inf, values[members])
        best = np.maximum.reduceat(known, begins)
        sizes = np.diff(begins, append=len(members))
        places = np.where(known == np.repeat(best, sizes), np.arange(len(members)), len(members))
        return members[np.minimum.reduceat(places, begins)]

    return choose


def nearest_to_centroid(features: Features) -> Choice:
    """Chooses the row nearest to the mean of the group's unit features; of equally near rows, the first."""
    device, xp = features.device, features.device.xp

    def choose(members: np.ndarray, begins: np.ndarray) -> np.ndarray:
        out, ends = members[begins], np.append(begins[1:], len(members))
        several = np.flatnonzero(ends - begins > 2)  # of two, both are equally near
        sums = xp.empty((min(GROUPS_PER_BATCH, len(several)), features.dimension))
        for start in range(0, len(several), GROUPS_PER_BATCH):
            batch = several[start : start + GROUPS_PER_BATCH]
            first, last = begins[batch[0]], ends[batch[-1]]
            spans = device.up(begins[batch] - first), device.up(ends[batch] - first)
            arguments = (*spans, device.up(members[first:last]), features.rows, sums)
            chosen = xp.empty(len(batch), np.int64)
            sum_members.launch(device, len(batch), *arguments)
            find_nearest_to_sum.launch(device, len(batch), *arguments, chosen)
            out[batch] = device.down(chosen)
        return out

    return choose
