"""Resizes a batch of pictures of any sizes in two launches: bit-equal to `resampling`, and so to Pillow.

For GPUs. On CPU cores `resample` is four times as fast (16 pictures of 512 × 512 to two inputs: 3.1 ms of one core per
picture, here 12.6 ms): its loops over a row are vectorised, while here a thread computes one pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from danqing.kernels.pictures.pixels import locate
from danqing.kernels.pictures.resampling import ROUNDING, WEIGHT_BITS, compute_weights
from danqing.kernels.portable import ArrayLauncher, address_of, byte_at, inlined, kernel

INTERMEDIATE_BYTES = 256 << 20
"""Maximum size of the first pass's output. 244 pictures of 512 × 512 take 84 MB, scaled to 224 columns."""
MAX_CACHED_TABLES = 4096
"""Maximum number of weight tables cached on the host. A cubic one from 512 pixels to 224 has 10 kB and takes 11 µs."""


class Window(NamedTuple):
    """A part of a picture scaled to `height` × `width`: `rows` × `columns` pixels from (`top`, `left`) on."""

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int


class Table(NamedTuple):
    """Weights along one axis, see `kernels.pictures.resampling.compute_weights`.

    Attributes:
        spans: int32 (target pixels, 2): first source pixel and number of source pixels of each target pixel.
        weights: int32 (maximum taps, target pixels): neighbouring threads read neighbouring weights.
        first, end: the first source pixel of all, and the one after the last.
    """

    spans: np.ndarray
    weights: np.ndarray
    first: int
    end: int


class Piece(NamedTuple):
    """A window of one picture, or some of its rows.

    Attributes:
        address, stride: address of the picture's first byte; bytes from row to row.
        rows, columns: size of the piece in target pixels.
        across, down: weights along a row and along a column.
        pixels, narrow_pixels: number of pixels that the second and the first pass write.
    """

    address: int
    stride: int
    rows: int
    columns: int
    across: Table
    down: Table
    pixels: int
    narrow_pixels: int


class Images(NamedTuple):
    """The geometry of each piece in one pass: all int64 (pieces,).

    The taps of a target pixel lie on a line: a row of the source in the first pass, a column in the second.

    Attributes:
        starts: first target pixel, counted through all pieces.
        columns: target pixels in a row.
        addresses: address of the source's first byte.
        line_bytes, tap_bytes: bytes from line to line and from tap to tap.
        places: target pixels on a line.
        spans, weights: where the piece's table begins.
    """

    starts: Any
    columns: Any
    addresses: Any
    line_bytes: Any
    tap_bytes: Any
    places: Any
    spans: Any
    weights: Any


def resample_pictures(
    device: ArrayLauncher, pictures: Sequence[Any], windows: Sequence[Window], interpolation: int
) -> Any:
    """Scales every picture and cuts its window out; only the window is computed.

    Resizes across, rounds to 8 bits, then resizes down, as `resample.resample`. Weights are computed on the
    host: a GPU's compiler fuses products with sums, which rounds differently. Does not wait for the device.

    Args:
        pictures: uint8 (height, width, 3) each, RGB, any row stride: NumPy arrays, or on a GPU any with a
            `__cuda_array_interface__`. They must stay alive until the device's stream has finished.
        windows: the window of each picture.
        interpolation: `LANCZOS`, `CUBIC` or `LINEAR` of `kernels.pictures.resampling`.

    Returns:
        uint8 (bytes,) on the device: the windows' interleaved pixels, one window after another.
    """
    pictures, places = locate(device, pictures)
    out = device.xp.empty(3 * sum(window.rows * window.columns for window in windows), np.uint8)
    start = 0
    for pieces in _batches(places, windows, interpolation):
        end = start + 3 * sum(piece.pixels for piece in pieces)
        _resample(device, pieces, out[start:end])
        start = end
    return out


@lru_cache(MAX_CACHED_TABLES)
def _table(size: int, scaled: int, start: int, count: int, interpolation: int) -> Table:
    """Computes a table; the arguments are those of `kernels.pictures.resampling.compute_weights`."""
    spans, fixed = compute_weights(size, scaled, start, count, interpolation)
    by_tap = np.ascontiguousarray(fixed[:, : spans[:, 1].max()].T)
    return Table(spans.astype(np.int32), by_tap, int(spans[0, 0]), int(spans[-1].sum()))


def _batches(places: np.ndarray, windows: Sequence[Window], interpolation: int) -> Iterator[list[Piece]]:
    """Yields the pieces of all pictures in order, in batches that fit `INTERMEDIATE_BYTES`."""
    batch: list[Piece] = []
    size = 0
    for place, window in zip(places.tolist(), windows, strict=True):
        for piece in _pieces(place, window, interpolation):
            if batch and size + 3 * piece.narrow_pixels > INTERMEDIATE_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(piece)
            size += 3 * piece.narrow_pixels
    if batch:
        yield batch


def _pieces(place: Sequence[int], window: Window, interpolation: int) -> Iterator[Piece]:
    """Yields the window, or parts of it that fit `INTERMEDIATE_BYTES` if its picture is very high."""
    address, stride, height, width = place
    scale = height / window.height
    max_rows = min(height, window.rows * scale + 2 * interpolation * max(scale, 1))
    if window.rows > 1 and 3 * window.columns * max_rows > INTERMEDIATE_BYTES:
        half = window.rows // 2
        yield from _pieces(place, window._replace(rows=half), interpolation)
        yield from _pieces(place, window._replace(top=window.top + half, rows=window.rows - half), interpolation)
        return
    rows, columns = window.rows, window.columns
    across = _table(width, window.width, window.left, columns, interpolation)
    down = _table(height, window.height, window.top, rows, interpolation)
    yield Piece(address, stride, rows, columns, across, down, rows * columns, (down.end - down.first) * columns)


def _resample(device: ArrayLauncher, pieces: Sequence[Piece], out: Any) -> None:
    """Runs both passes over pieces and writes `out`, uint8 (bytes,), their part of the result."""
    _, strides, rows, columns, across, down, pixels, narrow_pixels = zip(*pieces, strict=True)
    spans, fixed, starts = _packed([*across, *down])
    spans, fixed = device.up(spans), device.up(fixed)
    narrow_starts, pixel, row = _starts(narrow_pixels), [3] * len(pieces), 3 * np.array(columns)
    narrow = device.xp.empty(3 * sum(narrow_pixels), np.uint8)
    # `narrow` holds only the rows that the second pass reads, whose table counts from the picture's top.
    above = np.array([table.first for table in down])
    sources = np.array([piece.address for piece in pieces]) + above * strides
    narrows = address_of(narrow) + 3 * narrow_starts - above * row
    first = Images(narrow_starts, columns, sources, strides, pixel, columns, *starts[:, : len(pieces)])
    second = Images(_starts(pixels), columns, narrows, pixel, row, rows, *starts[:, len(pieces) :])
    for images, is_down, target in ((first, False, narrow), (second, True, out)):
        on_device = Images(*device.up(np.array(images, np.int64)))
        resample_lines.launch(device, len(target) // 3, on_device, spans, fixed, is_down, target)


def _packed(tables: Sequence[Table]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concatenates tables, each distinct one once.

    Returns:
        int32 (target pixels of all, 2), spans; int32, flat, weights; int64 (2, tables), where the spans and the weights
        of each begin.
    """
    once = {id(table): table for table in tables}
    spans, fixed = [table.spans for table in once.values()], [table.weights.ravel() for table in once.values()]
    starts = dict(zip(once, zip(_starts(map(len, spans)), _starts(map(len, fixed)), strict=True), strict=True))
    return np.concatenate(spans), np.concatenate(fixed), np.array([starts[id(table)] for table in tables]).T


def _starts(sizes: Iterable[int]) -> np.ndarray:
    """Returns the offsets of consecutive ranges of the given sizes."""
    ends = np.cumsum([0, *sizes])
    return ends[:-1]


@kernel
def resample_lines(first, last, step, images, spans, weights, is_down, out):
    """Runs one pass: each target pixel is a weighted sum of source pixels on its line, in fixed point.

    Args:
        images: `Images`.
        spans: int32 (target pixels of all tables, 2), see `Table`.
        weights: int32, the weights of all tables, flat.
        is_down: whether a line is a column.
        out: uint8 (3 · target pixels,), output: the pixels of all pieces.
    """
    for pixel in range(first, last, step):
        image = last_at_most(images.starts, pixel)
        number, columns = pixel - images.starts[image], images.columns[image]
        y, x = number // columns, number % columns
        line, place = (x, y) if is_down else (y, x)
        places, tap_bytes = images.places[image], images.tap_bytes[image]
        span = images.spans[image] + place
        source = images.addresses[image] + line * images.line_bytes[image] + spans[span, 0] * tap_bytes
        at = images.weights[image] + place
        red, green, blue = np.int32(ROUNDING), np.int32(ROUNDING), np.int32(ROUNDING)
        for tap in range(spans[span, 1]):
            weight = weights[at + tap * places]
            red = add_weighted(red, byte_at(source, 0), weight)
            green = add_weighted(green, byte_at(source, 1), weight)
            blue = add_weighted(blue, byte_at(source, 2), weight)
            source += tap_bytes
        out[3 * pixel] = to_level(red)
        out[3 * pixel + 1] = to_level(green)
        out[3 * pixel + 2] = to_level(blue)


@inlined
def last_at_most(starts, value):
    """Returns the index of the last entry of the ascending `starts` that is at most `value`."""
    low, high = 0, len(starts)
    while high - low > 1:
        middle = (low + high) // 2
        if starts[middle] <= value:
            low = middle
        else:
            high = middle
    return low


@inlined
def add_weighted(total, level, weight):
    """Returns total + level · weight in int32."""
    return np.int32(total + np.int32(np.int32(level) * weight))


@inlined
def to_level(total):
    """Converts a fixed-point sum to a level of 0 … 255."""
    return min(max(total >> WEIGHT_BITS, 0), 255)
