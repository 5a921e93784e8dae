"""Pixel statistics of decoded pictures, each pixel read once, all sums exact integers.

A batch's pictures are cut into tiles; a thread (on CUDA a block of threads) sums a tile up with the rows of grey
values it needs at hand, and two small kernels make figures of the sums. Nothing depends on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from danqing.kernels.portable import LANES, ArrayLauncher, byte_at, heavy_kernel, inlined, kernel, prefetch

if TYPE_CHECKING:  # bound by `Kernel.on_cuda`
    from numba import cuda

# OpenCV's cvtColor for 8-bit pictures: BT.601 weights in fixed point, 15 bits, rounded.
RED, GREEN, BLUE, SHIFT = 9798, 19235, 3735, 15
HALF = 1 << (SHIFT - 1)
HIGH = tuple(np.uint16(weight >> 8) for weight in (RED, GREEN, BLUE))
LOW = tuple(np.uint16(weight & 255) for weight in (RED, GREEN, BLUE))

LEVELS = 256
FIGURES = ("pixel_std", "laplacian_variance", "image_entropy")
"""What `pixel_statistics` gives, in this order.

`pixel_std`: standard deviation of the grey values, as `numpy.std`;
`laplacian_variance`: variance of `cv2.Laplacian(grey, CV_64F)` (kernel size 1, default border);
`image_entropy`: -sum p log2 p over the 256-bin grey histogram, in bits.
"""

TILE = {"cpu": (1024, 1024), "cuda": (64, LANES)}
"""Most rows and columns of a tile.

On CPUs narrow enough that a row's squared Laplacians, of at most (4 · 255)² each, sum up within 32 bits, and that all
scratch stays in the first cache; low enough to share a large picture. On CUDA a column a thread, and enough tiles to
fill the GPU while few rows are read twice, by two neighbouring tiles.
"""
PARTS = 8
"""Histograms counted into by turns: like neighbours would wait for each other's count."""
COUNTERS = PARTS * LEVELS


class Pictures(NamedTuple):
    """RGB pictures on a device, each where it lies: all int64 (pictures,).

    `addresses`: of the first byte; `strides`: bytes from row to row. A row is 3 · width bytes, interleaved.
    """

    addresses: Any
    strides: Any
    heights: Any
    widths: Any


class Tiles(NamedTuple):
    """Rows top … bottom - 1 and columns left … right - 1 of a picture: all int64 (tiles,)."""

    picture: Any
    top: Any
    bottom: Any
    left: Any
    right: Any


class Scratch(NamedTuple):
    """Working memory of CPU threads; each uses the entry that its `first` names.

    `lines`: uint8 (threads, 6, columns), of red, green and blue, and three of grey; `laplacian`: int16 (threads,
    columns); `counts`: uint32 (threads, COUNTERS).
    """

    lines: Any
    laplacian: Any
    counts: Any


def pixel_statistics(device: ArrayLauncher, pictures: Sequence[Any]) -> Any:
    """Contrast, sharpness and information of pictures at full resolution: float64 (pictures, 3), see `FIGURES`.

    Args:
        pictures: uint8 (height, width, 3) each, RGB, any row stride: NumPy arrays, or on a GPU whatever has a
            `__cuda_array_interface__`. They must stay alive until the device's stream is through with them.
    """
    xp = device.xp
    pictures, table = locate(device, pictures)
    counted, tiles = _cut(table[:, 2], table[:, 3], *TILE[device.kind])
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counted)])

    given = Pictures(*(device.up(np.ascontiguousarray(column)) for column in table.T))
    cut, starts = Tiles(*map(device.up, tiles)), device.up(starts)
    count = len(tiles.picture)
    slots, columns = (0, 0) if device.kind == "cuda" else (count, TILE["cpu"][1] + 64)
    scratch = Scratch(
        xp.empty((slots, 6, columns), np.uint8),
        xp.empty((slots, columns), np.int16),
        xp.empty((slots, COUNTERS), np.uint32),
    )
    counts, sums = xp.empty((count, LEVELS), np.uint32), xp.zeros((count, 2), np.int64)
    sum_tiles.launch(device, count, given, cut, scratch, counts, sums)
    histograms = xp.empty((len(pictures), LEVELS), np.int64)
    gather_counts.launch(device, len(pictures) * LEVELS, starts, counts, histograms)
    out = xp.empty((len(pictures), len(FIGURES)), np.float64)
    finish.launch(device, len(pictures), starts, sums, histograms, out)
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
        view = _interface(picture)
        if view["strides"] and view["strides"][1:] != (3, 1):
            picture = device.xp.ascontiguousarray(picture)
            view = _interface(picture)
        found.append(picture)
        height, width, _ = view["shape"]
        places.append((view["data"][0], (view["strides"] or (3 * width,))[0], height, width))
    return found, np.array(places, np.int64).reshape(-1, 4)


def address_of(array: Any) -> int:
    """Address of the first byte of an array of the device."""
    return int(_interface(array)["data"][0])


def _interface(array: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return found


def _cut(heights: np.ndarray, widths: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, Tiles]:
    """How many tiles each picture has, and all of them, picture by picture."""
    across = -(-widths // columns)
    counted = -(-heights // rows) * across
    picture = np.repeat(np.arange(len(counted)), counted)
    number = np.arange(len(picture)) - np.repeat(np.cumsum(counted) - counted, counted)
    top, left = number // across[picture] * rows, number % across[picture] * columns
    bottom, right = np.minimum(top + rows, heights[picture]), np.minimum(left + columns, widths[picture])
    return counted, Tiles(picture, top, bottom, left, right)


@inlined
def grey_level(red, green, blue):
    return (red * RED + green * GREEN + blue * BLUE + HALF) >> SHIFT


@inlined
def reflected(at, size):
    """OpenCV's BORDER_REFLECT_101: one step beyond an edge lies what is one step before it."""
    if at < 0:
        return min(1, size - 1)
    return at if at < size else max(size - 2, 0)


@heavy_kernel
def sum_tiles(first, last, step, pictures, tiles, scratch, counts, sums):
    """Per tile: uint32 (LEVELS,) pixels of each grey value; int64 (2,) sum of the Laplacian and of its square.

    On CUDA `sums` comes zeroed. The loops differ: what a CPU core wants are short rows in its cache for its vector
    lanes, what a GPU wants are columns for threads that keep the last three rows in registers.
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
                row_total, row_squares = sum_up(laplacian, size)
                total += row_total
                squares += row_squares
                count(here[1:], size, parts, row + pictures.strides[picture])
        sums[tile, 0] = total
        sums[tile, 1] = squares
        for level in range(LEVELS):
            pixels = np.uint32(0)
            for part in range(PARTS):
                pixels += parts[part * LEVELS + level]
            counts[tile, level] = pixels


@inlined
def fill_grey(row, size, red, green, blue, grey):
    """Grey values of `size` pixels from address `row` on.

    The colours are parted first, in a loop of nothing but bytes, which compiles to byte shuffles. The weighted sum
    then takes 16-bit lanes: with weight = 256 · high + low, it is 256 · H + L where H < 2¹⁵ and L < 2¹⁶, and so
    (256 · H + L) >> 15 is (H + (L >> 8)) >> 7. Casts keep Numba from widening.
    """
    for x in range(size):
        at, pixel = np.uintp(x), np.uintp(3) * np.uintp(x)  # unsigned: Numba need not look for negative positions
        red[at] = byte_at(row, pixel)
        green[at] = byte_at(row, pixel + np.uintp(1))
        blue[at] = byte_at(row, pixel + np.uintp(2))
    for x in range(size):
        at = np.uintp(x)
        high = weighted(HIGH[0], red[at], HIGH[1], green[at], HIGH[2], blue[at])
        low = weighted(LOW[0], red[at], LOW[1], green[at], LOW[2], blue[at])
        grey[at] = np.uint16(np.uint16(high + np.uint16(low >> np.uint16(8))) + np.uint16(HALF >> 8)) >> np.uint16(7)


@inlined
def weighted(a, red, b, green, c, blue):
    return np.uint16(np.uint16(np.uint16(a * red) + np.uint16(b * green)) + np.uint16(c * blue))


@inlined
def fill_laplacian(above, here, below, size, laplacian):
    """The 4-neighbour Laplacian of pixels here[1] … here[size]."""
    for x in range(size):
        at, right = np.uintp(x) + np.uintp(1), np.uintp(x) + np.uintp(2)
        beside = here[np.uintp(x)] + here[right]
        laplacian[np.uintp(x)] = np.int16(above[at] + below[at] + beside - 4 * here[at])


@inlined
def sum_up(laplacian, size):
    """Sum and sum of squares."""
    total, squares = np.int32(0), np.uint32(0)
    for x in range(size):
        value = np.int32(laplacian[np.uintp(x)])
        total = np.int32(total + value)
        squares = np.uint32(squares + np.uint32(value * value))
    return total, squares


@inlined
def count(grey, size, parts, ahead):
    """Adds grey[:size] to the histograms, and meanwhile fetches the row of pixels at address `ahead`."""
    whole = size // PARTS * PARTS
    for x in range(0, whole, PARTS):
        prefetch(ahead, 3 * x)
        for part in range(PARTS):
            parts[np.uintp(part * LEVELS) + np.uintp(grey[np.uintp(x) + np.uintp(part)])] += np.uint32(1)
    for x in range(whole, size):
        parts[np.uintp(grey[np.uintp(x)])] += np.uint32(1)


@sum_tiles.on_cuda
def sum_tile_by_columns(pictures, tiles, scratch, counts, sums):
    """A thread walks down its column, with the grey values it will need again in registers.

    Neighbours' columns are read again, from the first cache, which is cheaper than handing values round. Threads count
    into PARTS histograms that lie in different memory banks, as neighbours often have like values.
    """
    parts = cuda.shared.array(COUNTERS, np.int32)
    tile, lane = cuda.blockIdx.x, cuda.threadIdx.x
    for at in range(lane, COUNTERS, LANES):
        parts[at] = 0
    cuda.syncthreads()
    x = tiles.left[tile] + lane
    if x < tiles.right[tile]:
        picture = tiles.picture[tile]
        height, width = pictures.heights[picture], pictures.widths[picture]
        before, behind = 3 * reflected(x - 1, width), 3 * reflected(x + 1, width)
        total, squares = np.int32(0), np.int32(0)  # of at most 64 rows
        above, here, beside = np.int32(0), np.int32(0), np.int32(0)
        for y in range(tiles.top[tile] - 1, tiles.bottom[tile] + 1):
            row = pictures.addresses[picture] + reflected(y, height) * pictures.strides[picture]
            below = grey_at(row, 3 * x)
            if y > tiles.top[tile]:
                value = np.int32(above + below + beside - 4 * here)
                total += value
                squares += value * value
                cuda.atomic.add(parts, here * PARTS + lane % PARTS, 1)
            above, here, beside = here, below, grey_at(row, before) + grey_at(row, behind)
        cuda.atomic.add(sums, (tile, 0), np.int64(total))
        cuda.atomic.add(sums, (tile, 1), np.int64(squares))
    cuda.syncthreads()
    for level in range(lane, LEVELS, LANES):
        pixels = 0
        for part in range(PARTS):
            pixels += parts[level * PARTS + part]
        counts[tile, level] = pixels


@inlined
def grey_at(row, offset):
    red, green, blue = byte_at(row, offset), byte_at(row, offset + 1), byte_at(row, offset + 2)
    return np.int32(grey_level(np.int32(red), np.int32(green), np.int32(blue)))


@kernel
def gather_counts(first, last, step, starts, counts, histograms):
    """Adds up the tiles of a picture, a row for every grey value of every picture. `starts`: its first tile."""
    for row in range(first, last, step):
        picture, level = row // LEVELS, row % LEVELS
        pixels = np.int64(0)
        for tile in range(starts[picture], starts[picture + 1]):
            pixels += counts[tile, level]
        histograms[picture, level] = pixels


@kernel
def finish(first, last, step, starts, sums, histograms, out):
    """The figures of each picture."""
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
    """Of `count` integers, from their sum and the sum of their squares.

    About the integer nearest to the mean, where sums are still exact, and where squares are no less than the values:
    the difference in the end is of numbers at least a factor of two apart, so that none of its digits is lost.
    """
    centre = (2 * total + count) // (2 * count)
    rest = total - count * centre
    around = squares - 2 * centre * total + count * centre * centre
    return around / count - (rest / count) * (rest / count)
