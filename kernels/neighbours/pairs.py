"""Kernels of near-duplicate search, over features that stay where they are: float16 rows, known by their addresses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from danqing.kernels.neighbours.components import root, unite
from danqing.kernels.portable import LANES, half_at, heavy_kernel, inlined, inlined_sum, kernel

if TYPE_CHECKING:  # bound by `Kernel.on_cuda`
    from numba import cuda

STRIDE = 64
"""Numbers of a tile that are looked at together; nearly always none of them is above the bound."""


class Rows(NamedTuple):
    """Rows of float16 numbers, wherever they lie.

    `address`: int64 (rows,), where each begins. `scale`: float64 (rows,), 1 / its length, or 0 if it has no direction
    (a zero vector, or one with a number that is none). `dimension`: int64 (1,).
    """

    address: Any
    scale: Any
    dimension: Any


@inlined_sum
def _product(one, other, dimension):
    """Inner product of two rows; the products of halves are exact in float64."""
    total = 0.0
    for i in range(dimension):
        total += np.float64(half_at(one, i)) * np.float64(half_at(other, i))
    return total


@inlined
def _cosine(features, a, others, b):
    product = _product(features.address[a], others.address[b], features.dimension[0])
    return product * (features.scale[a] * others.scale[b])


@inlined
def _next_above(values, place, bound):
    """The first place from `place` on whose number lies above the bound; the length if there is none."""
    bound = np.float32(bound)
    while place < values.size:
        some = values[place : min(place + STRIDE, values.size)]
        found = np.uint32(0)  # one width and no branch, so that it runs in lanes
        for i in range(some.size):
            found |= np.uint32(some[i] > bound)
        if found:
            while not values[place] > bound:
                place += 1
            return place
        place += some.size
    return place


@kernel
def measure(first, last, step, features):
    """Fills `features.scale`."""
    for row in range(first, last, step):
        square = _product(features.address[row], features.address[row], features.dimension[0])
        features.scale[row] = 1.0 / math.sqrt(square) if 0.0 < square < np.inf else 0.0


@kernel
def unpack(first, last, step, features, out):
    """Unit rows as float32 (rows, dimension); a row without direction becomes zeros."""
    for row in range(first, last, step):
        address, scale = features.address[row], np.float32(features.scale[row])
        for i in range(features.dimension[0]):
            out[row, i] = half_at(address, i) * scale if scale > 0 else np.float32(0)


@kernel
def join_near(first, last, step, tile, bound, least, left, right, features, parent):
    """Unites the sets of rows whose cosine is above `least`, one row of a tile at a time.

    Args:
        tile: float32 or float16 (left, right), no entry below the pair's cosine by more than `least - bound`.
        left, right: int64, the rows that the tile's rows and columns stand for.
        parent: see `kernels.neighbours.components`.
    """
    for i in range(first, last, step):
        a = left[i]
        column = _next_above(tile[i], 0, bound)
        while column < right.size:
            _join(a, right[column], least, features, parent)
            column = _next_above(tile[i], column + 1, bound)


@join_near.on_cuda
def _join_near(tile, bound, least, left, right, features, parent):
    i = cuda.blockIdx.x
    a = left[i]
    for j in range(cuda.threadIdx.x, right.size, cuda.blockDim.x):
        if tile[i, j] > bound:
            _join(a, right[j], least, features, parent)


@inlined
def _join(a, b, least, features, parent):
    # Rows of one set already need no look at their features: a crowd of copies costs little.
    if a != b and root(parent, a) != root(parent, b) and _cosine(features, a, features, b) > least:
        unite(parent, a, b)


@kernel
def find_nearest(first, last, step, tile, bound, left, right, least, features, others, cosine, nearest):
    """Of `others`, the one with the greatest cosine above `least`, the first among equals.

    Args:
        cosine: float64 (rows,), the best so far; nearest: int64 (rows,), whose it is (-1: nobody's).
    """
    for i in range(first, last, step):
        a = left[i]
        column = _next_above(tile[i], 0, bound)
        while column < right.size:
            b = right[column]
            found = _cosine(features, a, others, b)
            if found > least and (nearest[a] < 0 or found > cosine[a]):
                cosine[a], nearest[a] = found, b
            column = _next_above(tile[i], column + 1, bound)


@find_nearest.on_cuda
def _find_nearest(tile, bound, left, right, least, features, others, cosine, nearest):
    best = cuda.shared.array(LANES, np.float64)
    whose = cuda.shared.array(LANES, np.int64)  # the simulator knows arrays by their lines
    i, lane = cuda.blockIdx.x, cuda.threadIdx.x
    a = left[i]
    best[lane], whose[lane] = least, -1
    for j in range(lane, right.size, cuda.blockDim.x):
        if tile[i, j] > bound:
            found = _cosine(features, a, others, right[j])
            if found > best[lane]:
                best[lane], whose[lane] = found, right[j]
    half = LANES // 2
    while half > 0:
        cuda.syncthreads()
        other = lane + half
        if lane < half and whose[other] >= 0:
            equal = best[other] == best[lane] and whose[other] < whose[lane]
            if whose[lane] < 0 or best[other] > best[lane] or equal:
                best[lane], whose[lane] = best[other], whose[other]
        half //= 2
    if lane == 0 and whose[0] >= 0 and (nearest[a] < 0 or best[0] > cosine[a]):
        cosine[a], nearest[a] = best[0], whose[0]


@kernel
def list_near(first, last, step, tile, bound, left, right, least, features, counts, near):
    """Of each of some rows, the neighbours whose cosine is above `least`, while there is room for them.

    Args:
        tile, bound, left, right, least: see `join_near`.
        counts: int64 (left,), neighbours so far; near: int64 (left, room), the rows that they are.
    """
    for i in range(first, last, step):
        column = _next_above(tile[i], 0, bound)
        while column < right.size and counts[i] < near.shape[1]:
            b = right[column]
            if left[i] != b and _cosine(features, left[i], features, b) > least:
                near[i, counts[i]] = b
                counts[i] += 1
            column = _next_above(tile[i], column + 1, bound)


@kernel
def count_joined(first, last, step, some, counts, near, parent, out):
    """How many of each row's neighbours (see `list_near`) are in its set: int64 (some,)."""
    for i in range(first, last, step):
        out[i] = 0
        for place in range(counts[i]):
            out[i] += np.int64(root(parent, some[i]) == root(parent, near[i, place]))


@heavy_kernel
def sum_members(first, last, step, begins, ends, members, features, out):
    """The sum of the unit rows of every set: float64 (sets, dimension).

    Args:
        begins, ends: int64 (sets,), where each set's rows stand in `members`.
    """
    for group in range(first, last, step):
        for i in range(features.dimension[0]):
            out[group, i] = 0.0
        for place in range(begins[group], ends[group]):
            address, scale = features.address[members[place]], features.scale[members[place]]
            for i in range(features.dimension[0]):
                out[group, i] += half_at(address, i) * scale


@heavy_kernel
def nearest_to_sum(first, last, step, begins, ends, members, features, sums, out):
    """Of every set, the member with the greatest inner product with the sum, the first among equals: int64 (sets,).

    Sums of equal rows are equal but for rounding, so that a member must be nearer by more than that.
    """
    for group in range(first, last, step):
        best, chosen = -np.inf, -1
        count = ends[group] - begins[group]
        for place in range(begins[group], ends[group]):
            row = members[place]
            total = 0.0
            for i in range(features.dimension[0]):
                total += half_at(features.address[row], i) * sums[group, i]
            total *= features.scale[row] / count
            if total > best + 1e-12:
                best, chosen = total, row
        out[group] = chosen


@kernel
def distances(first, last, step, left, right, features, out):
    """Cosine distance of each pair: float64 (pairs,)."""
    for pair in range(first, last, step):
        out[pair] = 1.0 - _cosine(features, left[pair], features, right[pair])
