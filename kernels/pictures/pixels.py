"""Pixel statistics of decoded pictures: each pixel is read once, and all sums are exact integers.

The pictures of a batch are cut into tiles. A thread (on CUDA a block of threads) sums up a tile; two small kernels
compute the statistics from the sums. Results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from danqing.kernels.portable import (
    THREADS_PER_ROW,
    ArrayLauncher,
    array_interface,
    byte_at,
    heavy_kernel,
    inlined,
    kernel,
    prefetch,
)

if TYPE_CHECKING:  # bound by `Kernel.on_cuda`
    from numba import cuda

# OpenCV's cvtColor for 8-bit pictures: BT.601 weights in fixed point, 15 bits, rounded.
RED, GREEN, BLUE = 9798, 19235, 3735
WEIGHT_BITS = 15
ROUNDING = 1 << (WEIGHT_BITS - 1)
HIGH_BYTES = tuple(np.uint16(weight >> 8) for weight in (RED, GREEN, BLUE))
LOW_BYTES = tuple(np.uint16(weight & 255) for weight in (RED, GREEN, BLUE))

LEVELS = 256
STATISTICS = ("pixel_std", "laplacian_variance", "image_entropy")
"""Columns of the result of `pixel_statistics`.

`pixel_std`: standard deviation of the grey values, as `numpy.std`;
`laplacian_variance`: variance of `cv2.Laplacian(grey, CV_64F)` (kernel size 1, default border);
`image_entropy`: -sum p log2 p over the 256-bin grey histogram, in bits.
"""

TILE_SHAPES = {"cpu": (1024, 1024), "cuda": (64, THREADS_PER_ROW)}
"""Maximum rows and columns of a tile, by kind of device.

On a CPU the sum of a row's squared Laplacians, at most (4 · 255)² each, must fit in 32 bits, the scratch memory in the
first-level cache, and a large picture must give several tiles. On CUDA there is a thread per column; 64 rows give
enough tiles to fill the GPU, while neighbouring tiles read few rows twice.
"""
HISTOGRAM_COPIES = 8
"""Consecutive pixels are counted in different copies of the histogram: equal ones would wait for each other's count."""
COUNTERS = HISTOGRAM_COPIES * LEVELS


class Pictures(NamedTuple):
    """Interleaved RGB pictures in the device's memory. All fields are int64 (pictures,).

    Attributes:
        addresses: address of the first byte.
        strides: bytes from row to row; a row has 3 · width bytes.
        heights, widths: in pixels.
    """

    addresses: Any
    strides: Any
    heights: Any
    widths: Any


class Tiles(NamedTuple):
    """Rows top … bottom - 1 and columns left … right - 1 of pictures. All fields are int64 (tiles,)."""

    picture: Any
    top: Any
    bottom: Any
    left: Any
    right: Any


class TileScratch(NamedTuple):
    """Scratch memory of CPU threads; each uses the entry of its thread index. Empty on CUDA.

    Attributes:
        lines: uint8 (threads, 6, columns): a row of red, of green and of blue, and three rows of grey.
        laplacian: int16 (threads, columns).
        counts: uint32 (threads, COUNTERS).
    """

    lines: Any
    laplacian: Any
    counts: Any


def pixel_statistics(device: ArrayLauncher, pictures: Sequence[Any]) -> Any:
    """Computes the contrast, sharpness and information of pictures at full resolution. Does not wait for the device.

    Args:
        device: holds the pictures.
        pictures: uint8 (height, width, 3) each, RGB, any row stride: NumPy arrays, or on a GPU any with a
            `__cuda_array_interface__`. They must stay alive until the device's stream has finished.

    Returns:
        float64 (pictures, 3) on the device, see `STATISTICS`.
    """
    xp = device.xp
    pictures, table = locate(device, pictures)
    counted, tiles = _cut_tiles(table[:, 2], table[:, 3], *TILE_SHAPES[device.kind])
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counted)])

    on_device = Pictures(*(device.up(np.ascontiguousarray(column)) for column in table.T))
    cut, starts = Tiles(*map(device.up, tiles)), device.up(starts)
    count = len(tiles.picture)
    slots, columns = (0, 0) if device.kind == "cuda" else (count, TILE_SHAPES["cpu"][1] + 64)
    scratch = TileScratch(
        xp.empty((slots, 6, columns), np.uint8),
        xp.empty((slots, columns), np.int16),
        xp.empty((slots, COUNTERS), np.uint32),
    )
    counts, sums = xp.empty((count, LEVELS), np.uint32), xp.zeros((count, 2), np.int64)
    sum_tiles.launch(device, count, on_device, cut, scratch, counts, sums)
    histograms = xp.empty((len(pictures), LEVELS), np.int64)
    gather_counts.launch(device, len(pictures) * LEVELS, starts, counts, histograms)
    out = xp.empty((len(pictures), len(STATISTICS)), np.float64)
    compute_statistics.launch(device, len(pictures), starts, sums, histograms, out)
    return out


def locate(device: ArrayLauncher, pictures: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    """Finds the addresses of pictures in the device's memory.

    Args:
        device: holds the pictures.
        pictures: uint8 (height, width, 3) each: NumPy arrays, or on a GPU any with a `__cuda_array_interface__`.

    Returns:
        The pictures, copied if their pixels are not interleaved (the caller keeps them while it uses the addresses);
        and int64 (pictures, 4): address of the first byte, bytes from row to row, height, width.
    """
    found, places = [], []
    for picture in pictures:
        view = array_interface(picture)
        if view["strides"] and view["strides"][1:] != (3, 1):
            picture = device.xp.ascontiguousarray(picture)
            view = array_interface(picture)
        found.append(picture)
        height, width, _ = view["shape"]
        places.append((view["data"][0], (view["strides"] or (3 * width,))[0], height, width))
    return found, np.array(places, np.int64).reshape(-1, 4)


def _cut_tiles(heights: np.ndarray, widths: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, Tiles]:
    """Cuts pictures into tiles; returns the number of tiles of each picture, and the tiles, picture by picture."""
    across = -(-widths // columns)
    counted = -(-heights // rows) * across
    picture = np.repeat(np.arange(len(counted)), counted)
    number = np.arange(len(picture)) - np.repeat(np.cumsum(counted) - counted, counted)
    top, left = number // across[picture] * rows, number % across[picture] * columns
    bottom, right = np.minimum(top + rows, heights[picture]), np.minimum(left + columns, widths[picture])
    return counted, Tiles(picture, top, bottom, left, right)


@inlined
def grey_level(red, green, blue):
    """Returns the grey value of a pixel, int32 as its arguments."""
    return (red * RED + green * GREEN + blue * BLUE + ROUNDING) >> WEIGHT_BITS


@inlined
def reflected(at, size):
    """Returns the index that replaces `at`: one step beyond an edge becomes one step before it (BORDER_REFLECT_101)."""
    if at < 0:
        return min(1, size - 1)
    return at if at < size else max(size - 2, 0)


@heavy_kernel
def sum_tiles(first, last, step, pictures, tiles, scratch, counts, sums):
    """Sums up each tile.

    The loops for the two devices differ: a CPU core works on rows, which stay in its cache and are vectorised; on a GPU
    a thread works on a column, with the last three rows in registers.

    Args:
        pictures, tiles, scratch: `Pictures`, `Tiles` and `TileScratch`.
        counts: uint32 (tiles, LEVELS), output: pixels of each grey value.
        sums: int64 (tiles, 2), output: sum of the Laplacian and of its square; zeroed before the launch.
    """
    lines, laplacian, parts = scratch.lines[first], scratch.laplacian[first], scratch.counts[first]
    for tile in range(first, last, step):
        picture = tiles.picture[tile]
        height, width = pictures.heights[picture], pictures.widths[picture]
        left, right = tiles.left[tile], tiles.right[tile]
        size = right - left
        begin, end = max(left - 1, 0), min(right + 1, width)
        parts[:] = 0
        total, squares = np.int64(0), np.int64(0)
        for y in range(tiles.top[tile] - 1, tiles.bottom[tile] + 1):
            row = pictures.addresses[picture] + reflected(y, height) * pictures.strides[picture] + 3 * begin
            below = lines[3 + (y + 1) % 3]
            fill_grey(row, end - begin, lines[0], lines[1], lines[2], below[begin - left + 1 :])
            if left == 0:
                below[0] = below[1 + reflected(-1, width)]
            if right == width:
                below[size + 1] = below[1 + reflected(width, width) - left]
            if y > tiles.top[tile]:
                above, here = lines[3 + (y - 1) % 3], lines[3 + y % 3]
                fill_laplacian(above, here, below, size, laplacian)
                row_total, row_squares = sum_squares(laplacian, size)
                total += row_total
                squares += row_squares
                add_to_histograms(here[1:], size, parts, row + pictures.strides[picture])
        sums[tile, 0] = total
        sums[tile, 1] = squares
        for level in range(LEVELS):
            pixels = np.uint32(0)
            for part in range(HISTOGRAM_COPIES):
                pixels += parts[part * LEVELS + level]
            counts[tile, level] = pixels


@inlined
def fill_grey(row, size, red, green, blue, grey):
    """Computes the grey values of `size` pixels from address `row` on.

    The first loop separates the colours; it has byte operations only, which compile to byte shuffles. The weighted sum
    then fits in 16 bits: with weight = 256 · high + low, it is 256 · H + L with H < 2¹⁵ and L < 2¹⁶, and
    (256 · H + L) >> 15 equals (H + (L >> 8)) >> 7. The casts prevent Numba from using wider integers.

    Args:
        row: address of the first pixel.
        red, green, blue: uint8 (size,), scratch.
        grey: uint8 (size,), output.
    """
    for x in range(size):
        at, pixel = np.uintp(x), np.uintp(3) * np.uintp(x)  # unsigned, so that Numba does not test for negative indices
        red[at] = byte_at(row, pixel)
        green[at] = byte_at(row, pixel + np.uintp(1))
        blue[at] = byte_at(row, pixel + np.uintp(2))
    for x in range(size):
        at = np.uintp(x)
        high = weighted_sum(HIGH_BYTES[0], red[at], HIGH_BYTES[1], green[at], HIGH_BYTES[2], blue[at])
        low = weighted_sum(LOW_BYTES[0], red[at], LOW_BYTES[1], green[at], LOW_BYTES[2], blue[at])
        grey[at] = np.uint16(np.uint16(high + np.uint16(low >> np.uint16(8))) + np.uint16(ROUNDING >> 8)) >> np.uint16(
            7
        )


@inlined
def weighted_sum(a, red, b, green, c, blue):
    """Returns a red + b green + c blue in uint16."""
    return np.uint16(np.uint16(np.uint16(a * red) + np.uint16(b * green)) + np.uint16(c * blue))


@inlined
def fill_laplacian(above, here, below, size, laplacian):
    """Computes the 4-neighbour Laplacian of pixels here[1] … here[size] of three rows."""
    for x in range(size):
        at, right = np.uintp(x) + np.uintp(1), np.uintp(x) + np.uintp(2)
        beside = here[np.uintp(x)] + here[right]
        laplacian[np.uintp(x)] = np.int16(above[at] + below[at] + beside - 4 * here[at])


@inlined
def sum_squares(laplacian, size):
    """Returns the sum (int32) and the sum of squares (uint32) of laplacian[:size]."""
    total, squares = np.int32(0), np.uint32(0)
    for x in range(size):
        value = np.int32(laplacian[np.uintp(x)])
        total = np.int32(total + value)
        squares = np.uint32(squares + np.uint32(value * value))
    return total, squares


@inlined
def add_to_histograms(grey, size, parts, next_row):
    """Counts grey[:size] in the copies of the histogram, and prefetches the row of pixels at address `next_row`."""
    whole = size // HISTOGRAM_COPIES * HISTOGRAM_COPIES
    for x in range(0, whole, HISTOGRAM_COPIES):
        prefetch(next_row, 3 * x)
        for part in range(HISTOGRAM_COPIES):
            parts[np.uintp(part * LEVELS) + np.uintp(grey[np.uintp(x) + np.uintp(part)])] += np.uint32(1)
    for x in range(whole, size):
        parts[np.uintp(grey[np.uintp(x)])] += np.uint32(1)


@sum_tiles.on_cuda
def sum_tile_by_columns(pictures, tiles, scratch, counts, sums):
    """Sums up a tile with a thread per column, which keeps the last three grey values in registers.

    Each thread also reads its neighbours' columns, from the first-level cache, which is faster than an exchange between
    threads. Threads count in HISTOGRAM_COPIES histograms in different memory banks, since neighbouring pixels are often
    equal.
    """
    parts = cuda.shared.array(COUNTERS, np.int32)
    tile, lane = cuda.blockIdx.x, cuda.threadIdx.x
    for at in range(lane, COUNTERS, THREADS_PER_ROW):
        parts[at] = 0
    cuda.syncthreads()
    x = tiles.left[tile] + lane
    if x < tiles.right[tile]:
        picture = tiles.picture[tile]
        height, width = pictures.heights[picture], pictures.widths[picture]
        before, behind = 3 * reflected(x - 1, width), 3 * reflected(x + 1, width)
        total, squares = np.int32(0), np.int32(0)  # a tile's column fits in 32 bits
        above, here, beside = np.int32(0), np.int32(0), np.int32(0)
        for y in range(tiles.top[tile] - 1, tiles.bottom[tile] + 1):
            row = pictures.addresses[picture] + reflected(y, height) * pictures.strides[picture]
            below = grey_at(row, 3 * x)
            if y > tiles.top[tile]:
                value = np.int32(above + below + beside - 4 * here)
                total += value
                squares += value * value
                cuda.atomic.add(parts, here * HISTOGRAM_COPIES + lane % HISTOGRAM_COPIES, 1)
            above, here, beside = here, below, grey_at(row, before) + grey_at(row, behind)
        cuda.atomic.add(sums, (tile, 0), np.int64(total))
        cuda.atomic.add(sums, (tile, 1), np.int64(squares))
    cuda.syncthreads()
    for level in range(lane, LEVELS, THREADS_PER_ROW):
        pixels = 0
        for part in range(HISTOGRAM_COPIES):
            pixels += parts[level * HISTOGRAM_COPIES + part]
        counts[tile, level] = pixels


@inlined
def grey_at(row, offset):
    """Returns the grey value (int32) of the pixel at address `row` plus `offset`."""
    red, green, blue = byte_at(row, offset), byte_at(row, offset + 1), byte_at(row, offset + 2)
    return np.int32(grey_level(np.int32(red), np.int32(green), np.int32(blue)))


@kernel
def gather_counts(first, last, step, starts, counts, histograms):
    """Adds up the tiles' histograms; a row of the kernel is one grey value of one picture.

    Args:
        starts: int64 (pictures + 1,), first tile of each picture.
        counts: uint32 (tiles, LEVELS).
        histograms: int64 (pictures, LEVELS), output.
    """
    for row in range(first, last, step):
        picture, level = row // LEVELS, row % LEVELS
        pixels = np.int64(0)
        for tile in range(starts[picture], starts[picture + 1]):
            pixels += counts[tile, level]
        histograms[picture, level] = pixels


@kernel
def compute_statistics(first, last, step, starts, sums, histograms, out):
    """Computes `STATISTICS` of each picture.

    Args:
        starts: int64 (pictures + 1,), first tile of each picture.
        sums: int64 (tiles, 2), see `sum_tiles`.
        histograms: int64 (pictures, LEVELS).
        out: float64 (pictures, 3), output.
    """
    for picture in range(first, last, step):
        total, squares = np.int64(0), np.int64(0)
        for tile in range(starts[picture], starts[picture + 1]):
            total += sums[tile, 0]
            squares += sums[tile, 1]
        pixels, grey_total, grey_squares = np.int64(0), np.int64(0), np.int64(0)
        for level in range(LEVELS):
            pixels += histograms[picture, level]
            grey_total += histograms[picture, level] * level
            grey_squares += histograms[picture, level] * level * level
        entropy = 0.0
        for level in range(LEVELS):
            if histograms[picture, level] > 0:
                share = histograms[picture, level] / pixels
                entropy -= share * math.log2(share)
        out[picture, 0] = math.sqrt(variance(pixels, grey_total, grey_squares))
        out[picture, 1] = variance(pixels, total, squares)
        out[picture, 2] = max(entropy, 0.0)


@inlined
def variance(count, total, squares):
    """Returns the variance of `count` integers from their sum and the sum of their squares.

    Subtracts the integer nearest to the mean first, which is exact. The final difference is then between numbers at
    least a factor of two apart, so that it loses no digits.
    """
    centre = (2 * total + count) // (2 * count)
    rest = total - count * centre
    around = squares - 2 * centre * total + count * centre * centre
    return around / count - (rest / count) * (rest / count)
