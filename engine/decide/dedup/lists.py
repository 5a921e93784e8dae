"""Approximate neighbour search with an inverted file, for a recall below 1.

Rows are clustered into lists by k-means. Every row is compared with the rows of the list of its nearest centre, then
with those of its second nearest, and so on. The search stops when the recall, measured on sample rows whose neighbours
are found exactly, is as high as requested. n rows make 4 √n lists, so the cost grows as n^1.5. A row takes less than 64
bytes in addition to its features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, product
from typing import Any, NamedTuple

import numpy as np

from danqing.engine.core.progress import Progress, Silent
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.folding import Folding
from danqing.engine.decide.dedup.neighbours import Joining, join_neighbours, split_range
from danqing.engine.decide.dedup.sample import HELD_OUT_ROWS, NeighbourSample
from danqing.engine.recipe.outcome import Recall, position_type
from danqing.kernels.neighbours.lists import average_lists, rank_lists

DEPTH = 8
"""Maximum number of lists that a row is compared with. If the recall is still too low, all pairs are compared."""
MAX_LISTS = 1 << 16
TRAINING_ROWS_PER_LIST = 32
KMEANS_ROUNDS = 6
SORTED_ROWS = 1 << 16
"""Rows that are sorted by list at the same time."""


def join_likely(
    features: Features, within: float, recall: float, parent: Any, known: int = 0, progress: Progress | None = None
) -> Recall:
    """Unites the groups of nearly all rows whose cosine distance is below `within`.

    Args:
        recall: share of the pairs of neighbours that must be in one group. The search stops when the even sample rows
            exceed it by two standard deviations.

    For the other arguments see `join_neighbours`.

    Returns:
        The recall, measured on the odd sample rows.
    """
    progress = progress or Silent()
    sample = NeighbourSample(features, within, progress)
    exact = len(features) < features.products.exact_rows
    if exact or not sample.satisfied(recall, parent, _rounds(features, within, parent, known, progress)):
        join_neighbours(features, within, parent, known, progress)
    return sample.recall(parent, HELD_OUT_ROWS)


def _rounds(features: Features, within: float, parent: Any, known: int, progress: Progress) -> Iterator[None]:
    """Compares the rows with the lists of their nearest centres, one list in each step."""
    lists = InvertedFile(features, within, known)
    for rank in range(DEPTH):
        lists.join(rank, parent, progress)
        yield


Piece = tuple[bool, int, int]
"""A range of rows of one list: whether it is of the members (else the visitors), begin, end."""
Pair = tuple[Piece, Piece]


class SortedRows(NamedTuple):
    """All rows, sorted by list. Arrays are int64 if nothing else is said, on the device.

    Attributes:
        rows: (rows,), row numbers, as `position_type`.
        begins, ends: (lists,), where each list begins and ends in `rows`.
        news: (lists,), where the rows that have not been compared before begin in each list.
    """

    rows: Any
    begins: Any
    news: Any
    ends: Any

    def lists(self) -> Iterable[tuple[int, int, int]]:
        return zip(self.begins.tolist(), self.news.tolist(), self.ends.tolist(), strict=True)


class InvertedFile:
    """An inverted file over all rows. `ranks`: uint16 (DEPTH, rows), each row's lists, the nearest centre first."""

    def __init__(self, features: Features, within: float, known: int) -> None:
        self.features, self.within, self.known = features, within, known
        self.count = list_count(len(features))
        # Pairs within a list are one in `count` of all pairs, but nearly all near pairs. Choosing lists needs less.
        self.fold, self.coarse_fold = (Folding.fit(features, 1 - within, crowding) for crowding in (self.count, 1))
        self.products = features.products
        self.buffer = features.device.xp.empty(max(self.products.tile**2, self.count), np.float32)
        centres = self._centres()
        self.ranks = features.device.xp.empty((DEPTH, len(features)), np.uint16)
        for start, stop in split_range(0, len(features), self.products.block):
            self.ranks[:, start:stop] = self._rank(self._vectors(slice(start, stop)), centres, DEPTH).T
        self.members = self._file(0)

    def join(self, rank: int, parent: Any, progress: Progress) -> None:
        """Compares the rows of every list with the rows for which it is the list number `rank`."""
        join, visitors = Joining(self.features, self.within, parent), self._file(rank) if rank else self.members
        pairs = list(_to_compare(self.members, visitors, self.products.tile))
        progress.expect(sum(_size(ours) * _size(theirs) for ours, theirs in pairs), 1)
        for batch in _batches(pairs, self.products.block):
            pieces = list(dict.fromkeys(piece for pair in batch for piece in pair))
            parts = [(self.members if member else visitors).rows[start:stop] for member, start, stop in pieces]
            rows = self.features.device.xp.concatenate(parts).astype(np.int64)
            folded = self.fold(self.features.take(rows))
            ends = accumulate(map(_size, pieces))
            place = {piece: slice(end - _size(piece), end) for piece, end in zip(pieces, ends, strict=True)}
            for ours, theirs in batch:
                join(folded[place[ours]], folded[place[theirs]], rows[place[ours]], rows[place[theirs]])
                progress.advance(_size(ours) * _size(theirs))

    def _centres(self) -> Any:
        """Computes the centres by spherical k-means on a sample: float32 (lists, k), of length 1."""
        features, xp = self.features, self.features.device.xp
        count = min(TRAINING_ROWS_PER_LIST * self.count, len(features))
        places = np.linspace(0, len(features) - 1, count).astype(np.int64)
        vectors = self._vectors(features.device.up(places))
        centres = xp.ascontiguousarray(vectors[:: len(vectors) // self.count][: self.count])
        for _ in range(KMEANS_ROUNDS):
            nearest = self._rank(vectors, centres, 1)[:, 0]
            order = xp.argsort(nearest, kind="stable")
            begins = xp.searchsorted(nearest[order], xp.arange(self.count + 1))
            average_lists.launch(features.device, self.count, begins[:-1], begins[1:], order, vectors, centres)
        return centres

    def _vectors(self, rows: Any) -> Any:
        return self.coarse_fold.coordinates(self.coarse_fold(self.features.take(rows)))

    def _rank(self, vectors: Any, centres: Any, depth: int) -> Any:
        xp = self.features.device.xp
        ranks, best = xp.empty((len(vectors), depth), np.uint16), xp.empty((len(vectors), depth), np.float32)
        for start, stop in split_range(0, len(vectors), len(self.buffer) // self.count):
            products = self.buffer[: (stop - start) * self.count].reshape(stop - start, self.count)
            xp.matmul(vectors[start:stop], centres.T, out=products)
            rank_lists.launch(self.features.device, stop - start, products, best[start:stop], ranks[start:stop])
        return ranks

    def _file(self, rank: int) -> SortedRows:
        """Sorts the rows by their list number `rank`, a part of them at a time: a row takes 4 bytes, not 24."""
        xp, lists = self.features.device.xp, self.ranks[rank]

        def count(rows: int) -> Any:
            parts = split_range(0, rows, SORTED_ROWS)
            return sum((xp.bincount(lists[start:stop], minlength=self.count) for start, stop in parts), xp.array(0))

        counts = count(len(lists))
        begins = xp.cumsum(counts) - counts
        out, free = xp.empty(len(lists), position_type(len(lists))), begins.copy()
        for start, stop in split_range(0, len(lists), SORTED_ROWS):
            order = xp.argsort(lists[start:stop], kind="stable")
            counted = xp.bincount(lists[start:stop], minlength=self.count)
            shift = free - (xp.cumsum(counted) - counted)
            out[shift[lists[start:stop][order]] + xp.arange(stop - start)] = start + order
            free += counted
        return SortedRows(out, begins, begins + count(self.known), begins + counts)


def list_count(rows: int) -> int:
    """Number of lists for some rows: about 4 √rows, a power of 2, at most `MAX_LISTS`.

    >>> [list_count(rows) for rows in (9_000, 1_000_000, 1_000_000_000)]
    [512, 4096, 65536]
    """
    return min(1 << round(np.log2(16 * rows) / 2), MAX_LISTS)


def _to_compare(members: SortedRows, visitors: SortedRows, tile: int) -> Iterator[Pair]:
    """Yields the pairs of pieces of every list and its visitors of which at least one has not been compared before."""
    same = visitors is members
    for (begin, new, end), (first, later, last) in zip(members.lists(), visitors.lists(), strict=True):
        across_lists = ((begin, end), (later, last)), ((new, end), (first, later))
        within_list = ((begin, new), (new, end)), ((new, end), (new, end))
        for ours, theirs in within_list if same else across_lists:
            for one, other in product(split_range(*ours, tile), split_range(*theirs, tile)):
                if not same or one <= other:  # each pair once
                    yield (True, *one), (same, *other)


def _size(piece: Piece) -> int:
    return piece[2] - piece[1]


def _batches(pairs: Iterable[Pair], room: int) -> Iterator[list[Pair]]:
    """Groups the pairs so that the pieces of a batch have at most `room` rows."""
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
