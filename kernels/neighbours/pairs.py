"""Kernels of near-duplicate search on float16 features, which are read in place by the addresses of their rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from danqing.kernels.neighbours.components import find_root, unite
from danqing.kernels.portable import THREADS_PER_ROW, half_at, heavy_kernel, inlined, inlined_sum, kernel

if TYPE_CHECKING:  # bound by `Kernel.on_cuda`
    from numba import cuda

SCAN_WIDTH = 64
"""Numbers of a tile that are compared with the bound at once; usually none is above it."""


class Rows(NamedTuple):
    """Feature vectors of float16 numbers in the device's memory.

    Attributes:
        address: int64 (rows,), address of each vector.
        scale: float64 (rows,), 1 / the vector's length; 0 for a zero vector and one with a non-finite number.
        dimension: int64 (1,), numbers of a vector.
    """

    address: Any
    scale: Any
    dimension: Any


@inlined_sum
def _product(one, other, dimension):
    """Inner product of the vectors at two addresses. Products of float16 numbers are exact in float64."""
    total = 0.0
    for i in range(dimension):
        total += np.float64(half_at(one, i)) * np.float64(half_at(other, i))
    return total


@inlined
def _cosine(features, a, others, b):
    product = _product(features.address[a], others.address[b], features.dimension[0])
    return product * (features.scale[a] * others.scale[b])


@inlined
def next_above(values, position, bound):
    """Returns the first position from `position` on whose number is above the bound; the length if there is none."""
    bound = np.float32(bound)
    while position < values.size:
        part = values[position : min(position + SCAN_WIDTH, values.size)]
        found = np.uint32(0)  # one integer width and no branch, so that the loop is vectorised
        for i in range(part.size):
            found |= np.uint32(part[i] > bound)
        if found:
            while not values[position] > bound:
                position += 1
            return position
        position += part.size
    return position


@kernel
def fill_scales(first, last, step, features):
    """Fills `features.scale` from the vectors."""
    for row in range(first, last, step):
        square = _product(features.address[row], features.address[row], features.dimension[0])
        features.scale[row] = 1.0 / math.sqrt(square) if 0.0 < square < np.inf else 0.0


@kernel
def unpack(first, last, step, features, out):
    """Writes the unit vectors to `out`, float32 (rows, dimension); vectors whose scale is 0 become zeros."""
    for row in range(first, last, step):
        address, scale = features.address[row], np.float32(features.scale[row])
        for i in range(features.dimension[0]):
            out[row, i] = half_at(address, i) * scale if scale > 0 else np.float32(0)


@kernel
def join_near(first, last, step, tile, bound, min_cosine, left, right, features, parent):
    """Unites the components of rows whose cosine is above `min_cosine`, one row of a tile at a time.

    Args:
        tile: float32 or float16 (left, right), approximate cosines, too low by at most `min_cosine - bound`.
        bound: pairs whose approximate cosine is not above it are skipped.
        min_cosine: limit of the exact cosine.
        left, right: int64, row numbers of the tile's rows and columns.
        features: `Rows`.
        parent: int64 (rows,), see `kernels.neighbours.components`.
    """
    for i in range(first, last, step):
        a = left[i]
        column = next_above(tile[i], 0, bound)
        while column < right.size:
            _join(a, right[column], min_cosine, features, parent)
            column = next_above(tile[i], column + 1, bound)


@join_near.on_cuda
def _join_near(tile, bound, min_cosine, left, right, features, parent):
    i = cuda.blockIdx.x
    a = left[i]
    for j in range(cuda.threadIdx.x, right.size, cuda.blockDim.x):
        if tile[i, j] > bound:
            _join(a, right[j], min_cosine, features, parent)


@inlined
def _join(a, b, min_cosine, features, parent):
    # Rows already in one component need no cosine, which saves most of the work on large groups of copies.
    if a != b and find_root(parent, a) != find_root(parent, b) and _cosine(features, a, features, b) > min_cosine:
        unite(parent, a, b)


@kernel
def join_found(first, last, step, products, found, bound, min_cosine, asked, features, parent):
    """Unites rows with those that a library found for them, if their cosine is above `min_cosine`, one pair at a time.

    Args:
        products: float32 (n, k), approximate cosines, too low by at most `min_cosine - bound`.
        found: int64 (n, k), the row that each one belongs to; any number where the product is not above `bound`.
        bound, min_cosine, features, parent: see `join_near`.
        asked: int64 (n,), the rows that were asked for.
    """
    width = found.shape[1]
    for pair in range(first, last, step):
        i, place = pair // width, pair % width
        if products[i, place] > bound:
            _join(asked[i], found[i, place], min_cosine, features, parent)


@kernel
def find_nearest(first, last, step, tile, bound, left, right, min_cosine, features, others, cosine, nearest):
    """Finds each row's nearest of `others`: that with the greatest cosine above `min_cosine`, the first of equal ones.

    Args:
        tile, bound, left, right, min_cosine: see `join_near`; `right` numbers rows of `others`.
        features, others: `Rows`.
        cosine: float64 (rows,), updated: the greatest cosine so far.
        nearest: int64 (rows,), updated: its row in `others`, -1 if there is none.
    """
    for i in range(first, last, step):
        a = left[i]
        column = next_above(tile[i], 0, bound)
        while column < right.size:
            b = right[column]
            found = _cosine(features, a, others, b)
            if found > min_cosine and (nearest[a] < 0 or found > cosine[a]):
                cosine[a], nearest[a] = found, b
            column = next_above(tile[i], column + 1, bound)


@find_nearest.on_cuda
def _find_nearest(tile, bound, left, right, min_cosine, features, others, cosine, nearest):
    best = cuda.shared.array(THREADS_PER_ROW, np.float64)
    best_row = cuda.shared.array(
        THREADS_PER_ROW, np.int64
    )  # on its own line: CUDA's simulator identifies arrays by line
    i, lane = cuda.blockIdx.x, cuda.threadIdx.x
    a = left[i]
    best[lane], best_row[lane] = min_cosine, -1
    for j in range(lane, right.size, cuda.blockDim.x):
        if tile[i, j] > bound:
            found = _cosine(features, a, others, right[j])
            if found > best[lane]:
                best[lane], best_row[lane] = found, right[j]
    half = THREADS_PER_ROW // 2
    while half > 0:
        cuda.syncthreads()
        other = lane + half
        if lane < half and best_row[other] >= 0:
            equal = best[other] == best[lane] and best_row[other] < best_row[lane]
            if best_row[lane] < 0 or best[other] > best[lane] or equal:
                best[lane], best_row[lane] = best[other], best_row[other]
        half //= 2
    if lane == 0 and best_row[0] >= 0 and (nearest[a] < 0 or best[0] > cosine[a]):
        cosine[a], nearest[a] = best[0], best_row[0]


@kernel
def choose_nearest(first, last, step, products, found, bound, min_cosine, asked, features, others, cosine, nearest):
    """Does what `find_nearest` does with rows that a library found.

    Args:
        products, found, bound, asked: see `join_found`; `found` numbers rows of `others`.
        min_cosine, features, others, cosine, nearest: see `find_nearest`.
    """
    for i in range(first, last, step):
        a = asked[i]
        for place in range(found.shape[1]):
            if products[i, place] > bound:
                b = found[i, place]
                near = _cosine(features, a, others, b)
                first_of_equal = near == cosine[a] and b < nearest[a]
                if near > min_cosine and (nearest[a] < 0 or near > cosine[a] or first_of_equal):
                    cosine[a], nearest[a] = near, b


@kernel
def list_near(first, last, step, tile, bound, left, right, min_cosine, features, counts, near):
    """Lists the rows whose cosine with each row of `left` is above `min_cosine`, up to the capacity of `near`.

    Args:
        tile, bound, left, right, min_cosine, features: see `join_near`.
        counts: int64 (left,), updated: neighbours found so far.
        near: int64 (left, capacity), updated: their rows.
    """
    for i in range(first, last, step):
        column = next_above(tile[i], 0, bound)
        while column < right.size and counts[i] < near.shape[1]:
            b = right[column]
            if left[i] != b and _cosine(features, left[i], features, b) > min_cosine:
                near[i, counts[i]] = b
                counts[i] += 1
            column = next_above(tile[i], column + 1, bound)


@kernel
def count_joined(first, last, step, left, counts, near, parent, out):
    """Counts how many of each row's neighbours are in its component.

    Args:
        left, counts, near: see `list_near`.
        parent: see `join_near`.
        out: int64 (left,), output.
    """
    for i in range(first, last, step):
        out[i] = 0
        for place in range(counts[i]):
            out[i] += np.int64(find_root(parent, left[i]) == find_root(parent, near[i, place]))


@heavy_kernel
def sum_members(first, last, step, begins, ends, members, features, out):
    """Adds up the unit vectors of each group.

    Args:
        begins, ends: int64 (groups,), the range of each group in `members`.
        members: int64, row numbers.
        features: `Rows`.
        out: float64 (groups, dimension), output.
    """
    for group in range(first, last, step):
        for i in range(features.dimension[0]):
            out[group, i] = 0.0
        for place in range(begins[group], ends[group]):
            address, scale = features.address[members[place]], features.scale[members[place]]
            for i in range(features.dimension[0]):
                out[group, i] += half_at(address, i) * scale


@heavy_kernel
def find_nearest_to_sum(first, last, step, begins, ends, members, features, sums, out):
    """Finds each group's member with the greatest inner product with the group's sum, the first of equal ones.

    Products of equal vectors differ by rounding, so a later member must be nearer by more than 1e-12.

    Args:
        begins, ends, members, features: see `sum_members`.
        sums: float64 (groups, dimension).
        out: int64 (groups,), output: row numbers.
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
def measure_distances(first, last, step, left, right, features, out):
    """Computes the cosine distance of each pair.

    Args:
        left, right: int64 (pairs,), row numbers.
        features: `Rows`.
        out: float64 (pairs,), output.
    """
    for pair in range(first, last, step):
        out[pair] = 1.0 - _cosine(features, left[pair], features, right[pair])
