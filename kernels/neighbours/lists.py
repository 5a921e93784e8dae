"""Kernels of inverted lists: the lists nearest to each row, and the mean of each list's rows."""

from __future__ import annotations

import math

import numpy as np

from danqing.kernels.neighbours.pairs import next_above
from danqing.kernels.portable import heavy_kernel, kernel


@kernel
def rank_lists(first, last, step, products, best, ranks):
    """Finds the lists with the greatest products of each row, in descending order; of equal ones the lower list first.

    Args:
        products: float32 (rows, lists).
        best: float32 (rows, depth), output: the greatest products.
        ranks: uint16 (rows, depth), output: their lists.
    """
    for row in range(first, last, step):
        final = best.shape[1] - 1
        for place in range(final + 1):
            best[row, place] = -np.inf
        column = next_above(products[row], 0, best[row, final])
        while column < products.shape[1]:
            product, place = products[row, column], final
            while place > 0 and best[row, place - 1] < product:
                best[row, place], ranks[row, place] = best[row, place - 1], ranks[row, place - 1]
                place -= 1
            best[row, place], ranks[row, place] = product, column
            column = next_above(products[row], column + 1, best[row, final])


@heavy_kernel
def average_lists(first, last, step, begins, ends, members, vectors, means):
    """Computes the mean of each list's rows, scaled to unit length. The mean of an empty list is not changed.

    Args:
        begins, ends: int64 (lists,), the range of each list in `members`.
        members: int64, row numbers.
        vectors: float32 (rows, dimension).
        means: float32 (lists, dimension), output.
    """
    for number in range(first, last, step):
        if begins[number] == ends[number]:
            continue
        square = 0.0
        for i in range(vectors.shape[1]):
            means[number, i] = 0
        for place in range(begins[number], ends[number]):
            row = members[place]
            for i in range(vectors.shape[1]):
                means[number, i] += vectors[row, i]
        for i in range(vectors.shape[1]):
            square += means[number, i] ** 2
        scale = np.float32(1 / math.sqrt(square)) if square > 0 else np.float32(0)
        for i in range(vectors.shape[1]):
            means[number, i] *= scale
