"""Antialiased resizing, bit for bit as Pillow does it: what published models were trained and validated with."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from danqing.kernels.compiled import cached

BITS = 22  # fixed-point weights as in Pillow's 8-bit path: 32 bits less 8 of a pixel and 2 of headroom
HALF = 1 << (BITS - 1)
LANCZOS, CUBIC, LINEAR = 3, 2, 1
"""Interpolations, each named by its support: how many pixels its kernel reaches to either side."""
LANES = 8
"""32-bit numbers in a vector register."""


@cached(njit, nogil=True)
def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0


@cached(njit, nogil=True)
def _kernel(interpolation: int, x: float) -> float:
    x = abs(x)
    if interpolation == LINEAR:
        return max(1.0 - x, 0.0)
    if interpolation == LANCZOS:  # sinc(x) sinc(x/3)
        return _sinc(x) * _sinc(x / LANCZOS) if x < LANCZOS else 0.0
    if x < 1.0:  # Keys' cubic convolution with a = -1/2
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2.0 else 0.0


@cached(njit, nogil=True)
def weights(size: int, scaled: int, start: int, count: int, interpolation: int) -> tuple[np.ndarray, np.ndarray]:
    """Which source pixels make up each of `count` target pixels, from `start` on, and with what weight.

    The kernel is widened by the scale when shrinking (antialiasing), and cut off and renormalised at the edges.

    Args:
        size, scaled: pixels along this axis before and after.

    Returns:
        int64 (count, 2): first source pixel and how many;
        int32 (count, most): their weights in fixed point, 0 beyond the last; `most`: a multiple of LANES.
    """
    scale = size / scaled
    stretch = max(scale, 1.0)
    reach = interpolation * stretch
    span = np.empty((count, 2), np.int64)
    most = math.floor(2 * reach + 1e-6) + 1  # with room for rounding
    fixed = np.zeros((count, -(-most // LANES) * LANES), np.int32)
    exact = np.empty(fixed.shape[1])
    for target in range(count):
        centre = (start + target + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        taps = min(int(centre + reach + 0.5), size) - first
        total = 0.0
        for tap in range(taps):
            exact[tap] = _kernel(interpolation, (tap + first - centre + 0.5) * (1.0 / stretch))
            total += exact[tap]
        for tap in range(taps):
            weight = exact[tap] / total * (1 << BITS)
            fixed[target, tap] = int(weight + 0.5) if weight >= 0 else int(weight - 0.5)
        span[target] = first, taps
    return span, fixed


@cached(njit, nogil=True)
def _part(line: np.ndarray, red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> None:
    """One row of interleaved RGB to its three colours."""
    for x in range(line.size // 3):
        at, pixel = np.uintp(x), np.uintp(3) * np.uintp(x)
        red[at], green[at], blue[at] = line[pixel], line[pixel + np.uintp(1)], line[pixel + np.uintp(2)]


@cached(njit, nogil=True)
def resample(
    picture: np.ndarray, height: int, width: int, top: int, left: int, out: np.ndarray, interpolation: int
) -> None:
    """The window of `out`'s size at (top, left) of the picture scaled to (height, width); nothing else is computed.

    First across, rounded to 8 bits, then down, as Pillow does; from version 13 on it turns the order round where the
    height shrinks more than the width, which moves a pixel by a level or two. We stay with the order that models know.

    Args:
        picture: uint8 (any height, any width, 3), contiguous.
        out: uint8 (rows, columns, 3), contiguous, written.
        interpolation: `LANCZOS`, `CUBIC` or `LINEAR`.
    """
    rows, columns = out.shape[0], out.shape[1]
    across, across_weights = weights(picture.shape[1], width, left, columns, interpolation)
    down, down_weights = weights(picture.shape[0], height, top, rows, interpolation)
    first, last = down[0, 0], down[rows - 1, 0] + down[rows - 1, 1]
    narrow = np.empty((last - first, columns * 3), np.uint8)
    # Colours apart, and as many taps for every pixel, the last ones of weight 0: so that taps fill vector lanes.
    taps = across_weights.shape[1]
    room = picture.shape[1] + taps
    reds, greens, blues = np.zeros(room, np.uint8), np.zeros(room, np.uint8), np.zeros(room, np.uint8)
    for y in range(first, last):
        _part(picture[y].reshape(-1), reds, greens, blues)
        target = narrow[y - first]
        for x in range(columns):
            red, green, blue = np.int32(HALF), np.int32(HALF), np.int32(HALF)
            start = np.uintp(across[x, 0])  # unsigned: Numba need not look for negative positions
            for tap in range(taps):
                weight, at = across_weights[np.uintp(x), np.uintp(tap)], start + np.uintp(tap)
                red = np.int32(red + np.int32(np.int32(reds[at]) * weight))
                green = np.int32(green + np.int32(np.int32(greens[at]) * weight))
                blue = np.int32(blue + np.int32(np.int32(blues[at]) * weight))
            target[np.uintp(3 * x)] = min(max(red >> BITS, 0), 255)
            target[np.uintp(3 * x + 1)] = min(max(green >> BITS, 0), 255)
            target[np.uintp(3 * x + 2)] = min(max(blue >> BITS, 0), 255)
    sums = np.empty(columns * 3, np.int32)
    flat = out.reshape(rows, columns * 3)
    for y in range(rows):
        sums[:] = HALF
        for tap in range(down[y, 1]):
            weight = down_weights[y, tap]
            source = narrow[down[y, 0] - first + tap]
            for x in range(sums.size):
                sums[x] += np.int32(source[x]) * weight
        for x in range(sums.size):
            flat[y, x] = min(max(sums[x] >> BITS, 0), 255)
