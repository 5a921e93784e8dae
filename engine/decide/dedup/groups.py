"""Groups of near-duplicates: components of neighbours, the representative of each group, and the distances to it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from danqing.engine.core.device import Device
from danqing.engine.core.progress import Progress
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.fingerprints import find_changes
from danqing.engine.decide.dedup.index import INDEXES
from danqing.engine.recipe.outcome import Recall, position_type
from danqing.kernels.neighbours.components import find_components
from danqing.kernels.neighbours.pairs import find_nearest_to_sum, measure_distances, sum_members

GROUPS_PER_BATCH = 1024
"""Groups whose centroids are in memory at the same time: 6 MiB for 768 dimensions."""

ROWS_PER_BATCH = 1 << 16
"""Rows whose representatives are chosen, or whose distances are computed, at the same time. More, if a group has."""

Choice = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Chooses representatives: members, (members,), sorted by group; begins, int64 (groups,), where each group begins → one
row of every group, (groups,)."""


class Groups(NamedTuple):
    """Groups of two or more rows. Arrays (members,) on the host, by ascending row; rows as `position_type`.

    Attributes:
        members: the rows that are in a group.
        group: the smallest row of each one's group.
        representative: the row that represents it.
        distance: float64, to that row.
    """

    members: np.ndarray
    group: np.ndarray
    representative: np.ndarray
    distance: np.ndarray


def near_groups(
    features: Features,
    within: float,
    choose: Choice,
    max_diameter: float | None,
    progress: Progress | None = None,
    found: np.ndarray | None = None,
    index: str = "tiles",
) -> Groups:
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
    """
    if found is None:
        found = near_components(features, within, progress, index=index)
    members = several(found)
    group = found[members]
    representative = representatives(group, members, choose)
    distance = _distances(features, members, representative)
    if max_diameter is None:
        return Groups(members, group, representative, distance)
    left = np.flatnonzero(distance > max_diameter)
    while len(left):
        rows = members[left]
        group = rows[near_components(features.take(rows), within, progress, index=index)]
        representative[left] = representatives(group, rows, choose)
        distance[left] = _distances(features, rows, representative[left])
        left = left[distance[left] > max_diameter]
    firsts, together = np.empty(len(features), members.dtype), recurs(representative, len(features))
    firsts[representative[::-1]] = members[::-1]  # the last assignment counts: the first member
    return Groups(*(part[together] for part in (members, firsts[representative], representative, distance)))


def several(group: np.ndarray) -> np.ndarray:
    """The rows in groups of two or more, ascending, of the type of `group`.

    Args:
        group: (rows,), the smallest row of each one's group.

    >>> several(np.array([0, 1, 0, 3])).tolist()
    [0, 2]
    """
    together = group != np.arange(len(group), dtype=group.dtype)
    together[group[together]] = True
    return np.flatnonzero(together).astype(group.dtype)


def recurs(labels: np.ndarray, count: int) -> np.ndarray:
    """Boolean (n,): whether each label, (n,), from 0 to `count` - 1, occurs more than once.

    >>> recurs(np.array([5, 2, 5]), 6).tolist()
    [True, False, True]
    """
    places = np.arange(len(labels), dtype=labels.dtype)
    last, found = np.empty(count, labels.dtype), np.zeros(count, bool)
    last[labels] = places
    found[labels[last[labels] != places]] = True
    return found[labels]


def _distances(features: Features, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The cosine distance of each row to another one, float64 (n,); 0 to itself."""
    device, out = features.device, np.empty(len(rows))
    for start in range(0, len(rows), ROWS_PER_BATCH):
        part = slice(start, start + ROWS_PER_BATCH)
        pairs = device.up(rows[part].astype(np.int64)), device.up(others[part].astype(np.int64))
        gap = device.xp.empty(len(pairs[0]))
        measure_distances.launch(device, len(gap), *pairs, features.rows, gap)
        out[part] = np.where(rows[part] == others[part], 0, device.down(gap))
    return out


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
        (rows,), as `position_type`, on the host: the smallest row of each row's component.
    """
    parent, known = _parents(features, earlier)
    INDEXES.named(index)().join(features, within, parent, known, progress)
    return first_rows(features.device, parent)


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
        (rows,), as `near_components`; and the measured recall, None if all near pairs were found.
    """
    parent, known = _parents(features, earlier)
    measured = INDEXES.named(index)(recall).join(features, within, parent, known, progress)
    return first_rows(features.device, parent), measured


def first_rows(device: Device, parent: Any) -> np.ndarray:
    """The smallest row of each row's component, (rows,), as `position_type`, on the host.

    Args:
        device: holds the forest.
        parent: int64 (rows,), the forest of all edges; its content is lost.
    """
    return device.down(find_components(device, parent)).astype(position_type(len(parent)))


def _parents(features: Features, earlier: np.ndarray | None) -> tuple[Any, int]:
    xp, known = features.device.xp, 0 if earlier is None else len(earlier)
    parent = xp.arange(len(features))
    if earlier is not None:
        parent[:known] = features.device.up(earlier)
    return parent, known


def representatives(group: np.ndarray, rows: np.ndarray, choose: Choice) -> np.ndarray:
    """Returns the representative of every row's group, (rows,).

    Args:
        group: (rows,), the same number for all rows of a group.
        rows: (rows,), the row numbers that `choose` gets.
        choose: chooses the representatives.
    """
    if not len(rows):
        return rows
    order = np.argsort(group, kind="stable").astype(group.dtype)
    borders = np.append(np.flatnonzero(find_changes(group[order])), len(order))
    out, batches = np.empty_like(rows), np.searchsorted(borders, np.arange(0, len(order), ROWS_PER_BATCH))
    for low, high in pairwise(np.unique([*batches, len(borders) - 1]).tolist()):
        begins, end = borders[low:high], borders[high]
        part = order[begins[0] : end]
        chosen = choose(rows[part], begins - begins[0])
        out[part] = np.repeat(chosen, np.diff(begins, append=end))
    return out


def passing(found: Groups, choose: Choice, count: int) -> np.ndarray:
    """Chooses the rows of each group that pass: the representative, then that of the others, and so on.

    Args:
        found: the groups.
        choose: chooses the representatives.
        count: largest number of rows of a group that pass.

    Returns:
        Boolean (members,).
    """
    passes: np.ndarray = found.representative == found.members
    for _ in range(count - 1):
        if passes.all():
            break
        chosen = representatives(found.representative[~passes], found.members[~passes], choose)
        passes[np.searchsorted(found.members, chosen)] = True
    return passes


class Preferring:
    """Chooses among the members that survive; among all members of a group in which none does (a `Choice`).

    Args:
        choose: chooses among them.
        survives: boolean (rows,), whether each row survives; of a group of one row it does not matter.

    Attributes:
        saved: (n, 2), of each group whose choice among all members would not survive: the row that was chosen instead
            of it, and that row.
    """

    def __init__(self, choose: Choice, survives: np.ndarray) -> None:
        self.choose, self.survives = choose, survives
        self.saved = np.empty((0, 2), np.int32)

    def __call__(self, members: np.ndarray, begins: np.ndarray) -> np.ndarray:
        sizes, survives = np.diff(begins, append=len(members)), self.survives[members]
        counts = np.add.reduceat(survives, begins, dtype=np.int64)
        mixed = (counts > 0) & (counts < sizes)
        candidate = survives | np.repeat(counts == 0, sizes)
        counts = np.where(counts == 0, sizes, counts)
        chosen = self.choose(members[candidate], np.cumsum(counts) - counts)
        if mixed.any():
            otherwise = self.choose(members[np.repeat(mixed, sizes)], np.cumsum(sizes[mixed]) - sizes[mixed])
            lost = np.isin(otherwise, members[~survives])
            self.saved = np.concatenate([self.saved, np.stack([chosen[mixed], otherwise], 1)[lost]])
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
            arguments = (*spans, device.up(members[first:last].astype(np.int64)), features.rows, sums)
            chosen = xp.empty(len(batch), np.int64)
            sum_members.launch(device, len(batch), *arguments)
            find_nearest_to_sum.launch(device, len(batch), *arguments, chosen)
            out[batch] = device.down(chosen)
        return out

    return choose
