"""Exact neighbour search: finds every pair of rows below a cosine distance, with O(rows) memory.

Blocks of rows are folded (see `folding`) and multiplied tile by tile; the lower half of the matrix is left out. Pairs
above the bound are decided in float64 from the features and united at once in a union-find forest. So no list of pairs
is stored, and the result does not depend on the tiles or threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from danqing.engine.core.progress import Progress, Silent
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.folding import Folding
from danqing.kernels.neighbours.pairs import find_nearest, join_near


def join_neighbours(
    features: Features, within: float, parent: Any, known: int = 0, progress: Progress | None = None
) -> None:
    """Unites the groups of all rows whose cosine distance is below `within`.

    Args:
        features: the rows.
        within: the cosine distance.
        parent: int64 (rows,) on the device, a union-find forest that is changed in place; see
            `kernels.neighbours.components`.
        known: the first `known` rows have been compared with each other before.
        progress: receives the number of comparisons.
    """
    progress, xp, rows = progress or Silent(), features.device.xp, len(features)
    progress.expect(rows * (rows - 1) // 2 - known * (known - 1) // 2, 1)
    fold, join = Folding.fit(features, 1 - within), Joining(features, within, parent)
    tile = features.products.tile
    for begin, end in split_range(known, rows, features.products.block):
        block = fold(features.take(slice(begin, end)))
        for start, stop in [
            *split_range(0, known, tile),
            *split_range(begin, end, tile),
            *split_range(end, rows, tile),
        ]:
            inside = begin <= start < end
            right = block[start - begin : stop - begin] if inside else fold(features.take(slice(start, stop)))
            for top, bottom in split_range(begin, stop if inside else end, tile):
                join(block[top - begin : bottom - begin], right, xp.arange(top, bottom), xp.arange(start, stop))
                count = bottom - top
                progress.advance(count * (count - 1) // 2 if top == start else count * (stop - start))


def nearest_rows(
    features: Features, others: Features, within: float, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest row of `others` for each row; of equally near rows, the first.

    Args:
        features: the rows.
        others: the rows to search in, of the same dimension.
        within: only rows below this cosine distance count.
        progress: receives the number of comparisons.

    Returns:
        The nearest of the others, int64 (rows,), -1 if there is none; and its cosine distance, float64 (rows,), NaN if
        there is none. Both on the host.
    """
    device, xp, bound = features.device, features.device.xp, 1 - within - features.products.slack
    rows, nearest, cosine = xp.arange(len(features)), xp.full(len(features), -1), xp.full(len(features), np.nan)
    found = (1 - within, features.rows, others.rows, cosine, nearest)
    for left, right, product in multiply_tiles(features, others, within, progress):
        find_nearest.launch(device, len(product), product, bound, rows[left], right, *found)
    return device.down(nearest), device.down(1 - cosine)


def join_rows(
    features: Features,
    rows: Any,
    within: float,
    parent: Any,
    progress: Progress | None = None,
    others: int | None = None,
) -> None:
    """Unites the groups of some rows and of all rows whose cosine distance to them is below `within`.

    Args:
        rows: int64 (n,), on the device.
        others: only the first `others` rows are compared with them; None: all.

    For the other arguments see `join_neighbours`.
    """
    bound = 1 - within - features.products.slack
    for left, right, product in multiply_tiles(features.take(rows), features.take(slice(others)), within, progress):
        pairs = (product, bound, 1 - within, rows[left], right)
        join_near.launch(features.device, len(product), *pairs, features.rows, parent)


def multiply_tiles(
    features: Features, others: Features, within: float, progress: Progress | None = None
) -> Iterator[tuple[slice, Any, Any]]:
    """Multiplies the folded vectors of all rows of two tables, tile by tile.

    Args:
        features, others: the tables, of the same dimension.
        within: cosine distance of the pairs that are looked for.
        progress: receives the number of comparisons.

    Yields:
        A range of rows of `features`; row numbers in `others`, int64 (right,); and the products, (left, right), valid
        until the next step.
    """
    progress, xp = progress or Silent(), features.device.xp
    progress.expect(len(features) * len(others), 1)
    products, fold, tile = features.products, Folding.fit(others, 1 - within), Tile(features)
    for begin, end in split_range(0, len(features), products.block):
        block = fold(features.take(slice(begin, end)))
        for start, stop in split_range(0, len(others), products.tile):
            right = fold(others.take(slice(start, stop)))
            for top, bottom in split_range(begin, end, products.tile):
                product = tile.product(block[top - begin : bottom - begin], right)
                yield slice(top, bottom), xp.arange(start, stop), product
                progress.advance(product.size)


def split_range(first: int, last: int, size: int) -> list[tuple[int, int]]:
    """Splits a range into pieces of at most `size`.

    >>> split_range(0, 5, 2)
    [(0, 2), (2, 4), (4, 5)]
    """
    return [(start, min(start + size, last)) for start in range(first, last, size)]


class Tile:
    """Buffer for the products of two tiles of folded vectors."""

    def __init__(self, features: Features) -> None:
        features.device.sum_in_float32()
        self.xp, products = features.device.xp, features.products
        self.room = self.xp.empty(products.tile**2, products.kind)

    def product(self, left: Any, right: Any) -> Any:
        """Multiplies folded vectors: (left, right), valid until the next call."""
        out = self.room[: len(left) * len(right)].reshape(len(left), len(right))
        self.xp.matmul(left, right.T, out=out)
        return out


class Joining:
    """Unites the rows of two tiles whose cosine distance is below `within`."""

    def __init__(self, features: Features, within: float, parent: Any) -> None:
        self.features, self.parent, self.tile = features, parent, Tile(features)
        self.least = 1 - within
        self.bound = self.least - features.products.slack

    def __call__(self, left: Any, right: Any, left_rows: Any, right_rows: Any) -> None:
        """Compares two tiles.

        Args:
            left, right: folded vectors, at most `products.tile` each.
            left_rows, right_rows: int64, their row numbers.
        """
        arguments = (self.bound, self.least, left_rows, right_rows, self.features.rows, self.parent)
        join_near.launch(self.features.device, len(left), self.tile.product(left, right), *arguments)
