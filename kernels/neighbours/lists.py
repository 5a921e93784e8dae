"""Kernels of inverted files: which lists a row is likest to, and what a list's rows have in common."""

from __future__ import annotations

import math

import numpy as np

from danqing.kernels.neighbours.pairs import _next_above
from danqing.kernels.portable import heavy_kernel, kernel


@kernel
def rank_lists(first, last, step, products, best, ranks):
    """The lists with the greatest products, the greatest first, the lower number first among equals.

    Args:
        products: float32 (rows, lists).
        best: float32 (rows, depth), room for the greatest products.
        ranks: uint16 (rows, depth), the lists that they are of.
    """
    for row in range(first, last, step):
        final = best.shape[1] - 1
        for place in range(final + 1):
            best[row, place] = -np.inf
        column = _next_above(products[row], 0, best[row, final])
        while column < products.shape[1]:
            product, place = products[row, column], final
            while place > 0 and best[row, place - 1] < product:
                best[row, place], ranks[row, place] = best[row, place - 1], ranks[row, place - 1]
                place -= 1
            best[row, place], ranks[row, place] = product, column
            column = _next_above(products[row], column + 1, best[row, final])


@heavy_kernel
def mean_rows(first, last, step, begins, ends, members, vectors, means):
    """The direction of the mean of every list's rows, as a vector of length 1; an empty list keeps what it had.

    Args:
        begins, ends: int64 (lists,), where each list's rows stand in `members`, int64.
        vectors: float32 (rows, numbers). means: float32 (lists, numbers).
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
