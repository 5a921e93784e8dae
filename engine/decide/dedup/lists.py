"""Sets of rows chained together by near features, when nearly all pairs are enough: an inverted file.

Every row goes to the list whose centre it is likest to, and is compared with the rows of that list; then with those of
the list it is second likest to, and so on, until of the neighbours of a sample of rows, found exactly, as many are in
one set as were asked for. n rows make 4 √n lists, so that the cost grows as n^1.5. Beside its features a row takes less
than 64 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, product
from typing import Any, NamedTuple

import numpy as np

from danqing.engine.core.progress import Progress, Silent
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.folding import Folding
from danqing.engine.decide.dedup.neighbours import Joining, join_neighbours, spans
from danqing.engine.decide.dedup.sample import JUDGED, UNSEEN, Sample
from danqing.engine.recipe.outcome import Recall
from danqing.kernels.neighbours.lists import average_lists, rank_lists

DEPTH = 8
"""Lists that a row looks through at most; if these are not enough, all pairs are compared."""
MOST_LISTS = 1 << 16
TRAINING, ROUNDS = 32, 6
"""Rows a list that centres are made from, and how often they are made better."""


def join_likely(
    features: Features, within: float, recall: float, parent: Any, known: int = 0, progress: Progress | None = None
) -> Recall:
    """Unites the sets of nearly all rows whose cosine distance is below `within`; see `join_neighbours`.

    Args:
        recall: the share of neighbours that must be in one set. Those by which this is judged must keep to it with two
            standard deviations to spare, so that others keep to it as well.

    Returns:
        What was found of others.
    """
    progress = progress or Silent()
    sample = Sample(features, within, progress)
    exact = len(features) < features.products.exact_rows
    if exact or not _joined_by_lists(features, within, recall, parent, known, sample, progress):
        join_neighbours(features, within, parent, known, progress)
    return sample.recall(parent, UNSEEN)


def _joined_by_lists(
    features: Features, within: float, recall: float, parent: Any, known: int, sample: Sample, progress: Progress
) -> bool:
    """Goes through lists until enough is found; returns whether it was."""
    lists = Lists(features, within, known)
    for rank in range(DEPTH):
        lists.join(rank, parent, progress)
        if sample.recall(parent, JUDGED).pairs and sample.assures(recall, parent, JUDGED):
            return True
    return not sample.recall(parent, JUDGED).pairs


Piece = tuple[bool, int, int]
"""Of members (or else visitors) of one list: from where to where."""
Pair = tuple[Piece, Piece]


class Filed(NamedTuple):
    """All `rows`, list by list; and of each list where it begins, where rows that are not known yet begin in it, and
    where it ends: int64."""

    rows: Any
    begins: Any
    news: Any
    ends: Any

    def lists(self) -> Iterable[tuple[int, int, int]]:
        return zip(self.begins.tolist(), self.news.tolist(), self.ends.tolist(), strict=True)


class Lists:
    """An inverted file over all rows. `ranks`: uint16 (DEPTH, rows), each row's lists, the likest first."""

    def __init__(self, features: Features, within: float, known: int) -> None:
        self.features, self.within, self.known = features, within, known
        self.count = min(1 << round(np.log2(16 * len(features)) / 2), MOST_LISTS)
        # Nearly all near pairs are of one list, and so are one in `count` of all pairs. To choose a list, less will do.
        self.fold, self.coarsely = (Folding.fit(features, 1 - within, crowding) for crowding in (self.count, 1))
        self.products = features.products
        self.room = features.device.xp.empty(max(self.products.tile**2, self.count), np.float32)
        centres = self._centres()
        self.ranks = features.device.xp.empty((DEPTH, len(features)), np.uint16)
        for start, stop in spans(0, len(features), self.products.block):
            self.ranks[:, start:stop] = self._rank(self._vectors(slice(start, stop)), centres, DEPTH).T
        self.members = self._file(0)

    def join(self, rank: int, parent: Any, progress: Progress) -> None:
        """Compares the rows of every list with those that have it at `rank`."""
        join, visitors = Joining(self.features, self.within, parent), self._file(rank) if rank else self.members
        pairs = list(_to_compare(self.members, visitors, self.products.tile))
        progress.expect(sum(_size(ours) * _size(theirs) for ours, theirs in pairs), 1)
        for batch in _batches(pairs, self.products.block):
            pieces = list(dict.fromkeys(piece for pair in batch for piece in pair))
            parts = [(self.members if member else visitors).rows[start:stop] for member, start, stop in pieces]
            rows = self.features.device.xp.concatenate(parts)
            folded = self.fold(self.features.take(rows))
            ends = accumulate(map(_size, pieces))
            place = {piece: slice(end - _size(piece), end) for piece, end in zip(pieces, ends, strict=True)}
            for ours, theirs in batch:
                join(folded[place[ours]], folded[place[theirs]], rows[place[ours]], rows[place[theirs]])
                progress.advance(_size(ours) * _size(theirs))

    def _centres(self) -> Any:
        """float32 (lists, k), of length 1: spherical k-means of some rows."""
        features, xp = self.features, self.features.device.xp
        places = np.linspace(0, len(features) - 1, min(TRAINING * self.count, len(features))).astype(np.int64)
        vectors = self._vectors(features.device.up(places))
        centres = xp.ascontiguousarray(vectors[:: len(vectors) // self.count][: self.count])
        for _ in range(ROUNDS):
            nearest = self._rank(vectors, centres, 1)[:, 0]
            order = xp.argsort(nearest, kind="stable")
            begins = xp.searchsorted(nearest[order], xp.arange(self.count + 1))
            average_lists.launch(features.device, self.count, begins[:-1], begins[1:], order, vectors, centres)
        return centres

    def _vectors(self, rows: Any) -> Any:
        return self.coarsely.coordinates(self.coarsely(self.features.take(rows)))

    def _rank(self, vectors: Any, centres: Any, depth: int) -> Any:
        xp = self.features.device.xp
        ranks, best = xp.empty((len(vectors), depth), np.uint16), xp.empty((len(vectors), depth), np.float32)
        for start, stop in spans(0, len(vectors), len(self.room) // self.count):
            products = self.room[: (stop - start) * self.count].reshape(stop - start, self.count)
            xp.matmul(vectors[start:stop], centres.T, out=products)
            rank_lists.launch(self.features.device, stop - start, products, best[start:stop], ranks[start:stop])
        return ranks

    def _file(self, rank: int) -> Filed:
        xp, lists = self.features.device.xp, self.ranks[rank]
        counts, known = (xp.bincount(some, minlength=self.count) for some in (lists, lists[: self.known]))
        begins = xp.cumsum(counts) - counts
        return Filed(xp.argsort(lists, kind="stable"), begins, begins + known, begins + counts)


def _to_compare(members: Filed, visitors: Filed, tile: int) -> Iterator[Pair]:
    """Pieces of every list and of its visitors, one of the two new."""
    same = visitors is members
    for (begin, new, end), (first, later, last) in zip(members.lists(), visitors.lists(), strict=True):
        apart = ((begin, end), (later, last)), ((new, end), (first, later))
        among = ((begin, new), (new, end)), ((new, end), (new, end))
        for ours, theirs in among if same else apart:
            for one, other in product(spans(*ours, tile), spans(*theirs, tile)):
                if not same or one <= other:  # each pair once
                    yield (True, *one), (same, *other)


def _size(piece: Piece) -> int:
    return piece[2] - piece[1]


def _batches(pairs: Iterable[Pair], room: int) -> Iterator[list[Pair]]:
    """As many at a time as there is room for their rows."""
    batch: list[Pair] = []
    pieces: set[Piece] = set()
    size = 0
    for pair in pairs:
        more = sum(map(_size, set(pair) - pieces))
        if batch and size + more > room:
            yield batch
            batch, pieces, size = [], set(), 0
            more = sum(map(_size, set(pair)))
        batch.append(pair)
        pieces.update(pair)
        size += more
    if batch:
        yield batch
