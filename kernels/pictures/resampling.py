"""Antialiased resizing, bit-equal to Pillow, with which published models were trained and validated."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from danqing.kernels.compiled import cached

WEIGHT_BITS = 22
"""Fraction bits of a weight, as in Pillow's 8-bit code: 32 bits minus 8 of a pixel and 2 of headroom."""
ROUNDING = 1 << (WEIGHT_BITS - 1)
LANCZOS, CUBIC, LINEAR = 3, 2, 1  # interpolations; the value is the filter's radius in target pixels
INT32_LANES = 8
"""Number of 32-bit integers in a vector register."""


@cached(njit, nogil=True)
def _sinc(x: float) -> float:
    """sin(π x) / (π x)."""
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0


@cached(njit, nogil=True)
def _filter_value(interpolation: int, x: float) -> float:
    """Returns the value of an interpolation filter at distance x, in pixels."""
    x = abs(x)
    if interpolation == LINEAR:
        return max(1.0 - x, 0.0)
    if interpolation == LANCZOS:  # sinc(x) sinc(x/3)
        return _sinc(x) * _sinc(x / LANCZOS) if x < LANCZOS else 0.0
    if x < 1.0:  # Keys' cubic convolution with a = -1/2
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2.0 else 0.0


@cached(njit, nogil=True)
def compute_weights(
    size: int, scaled: int, start: int, count: int, interpolation: int
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the weights of source pixels in each target pixel along one axis.

    When shrinking, the filter is widened by the scale (antialiasing). It is cut off at the edges and renormalised.

    Args:
        size, scaled: pixels along this axis before and after scaling.
        start, count: first target pixel and number of target pixels.
        interpolation: `LANCZOS`, `CUBIC` or `LINEAR`.

    Returns:
        int64 (count, 2): first source pixel and number of source pixels of each target pixel;
        int32 (count, max_taps): their weights in fixed point, then zeros; max_taps is a multiple of INT32_LANES.
    """
    scale = size / scaled
    stretch = max(scale, 1.0)
    reach = interpolation * stretch
    span = np.empty((count, 2), np.int64)
    max_taps = math.floor(2 * reach + 1e-6) + 1  # 1e-6 covers rounding errors of `reach`
    fixed = np.zeros((count, -(-max_taps // INT32_LANES) * INT32_LANES), np.int32)
    exact = np.empty(fixed.shape[1])
    for target in range(count):
        centre = (start + target + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        taps = min(int(centre + reach + 0.5), size) - first
        total = 0.0
        for tap in range(taps):
            exact[tap] = _filter_value(interpolation, (tap + first - centre + 0.5) * (1.0 / stretch))
            total += exact[tap]
        for tap in range(taps):
            weight = exact[tap] / total * (1 << WEIGHT_BITS)
            fixed[target, tap] = int(weight + 0.5) if weight >= 0 else int(weight - 0.5)
        span[target] = first, taps
    return span, fixed


@cached(njit, nogil=True)
def _split_colours(line: np.ndarray, red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> None:
    """Splits a row of interleaved RGB, uint8 (3 · width,), into its colours, uint8 (width,) each."""
    for x in range(line.size // 3):
        at, pixel = np.uintp(x), np.uintp(3) * np.uintp(x)
        red[at], green[at], blue[at] = line[pixel], line[pixel + np.uintp(1)], line[pixel + np.uintp(2)]


@cached(njit, nogil=True)
def resample(
    picture: np.ndarray, height: int, width: int, top: int, left: int, out: np.ndarray, interpolation: int
) -> None:
    """Scales a picture to (height, width) and writes a window of the result; only the window is computed.

    Resizes across, rounds to 8 bits, then resizes down, as Pillow does. From version 13 on, Pillow reverses the order
    if the height shrinks more than the width, which changes pixels by a level or two. This function keeps the order
    with which models were trained.

    Args:
        picture: uint8 (source height, source width, 3), contiguous.
        height, width: size of the scaled picture.
        top, left: position of the window in the scaled picture.
        out: uint8 (rows, columns, 3), contiguous, output: the window.
        interpolation: `LANCZOS`, `CUBIC` or `LINEAR`.
    """
    rows, columns = out.shape[0], out.shape[1]
    across, across_weights = compute_weights(picture.shape[1], width, left, columns, interpolation)
    down, down_weights = compute_weights(picture.shape[0], height, top, rows, interpolation)
    first, last = down[0, 0], down[rows - 1, 0] + down[rows - 1, 1]
    narrow = np.empty((last - first, columns * 3), np.uint8)
    # Separate colours and the same number of taps for every pixel (with weights 0) let the compiler vectorise the taps.
    taps = across_weights.shape[1]
    length = picture.shape[1] + taps
    reds, greens, blues = np.zeros(length, np.uint8), np.zeros(length, np.uint8), np.zeros(length, np.uint8)
    for y in range(first, last):
        _split_colours(picture[y].reshape(-1), reds, greens, blues)
        target = narrow[y - first]
        for x in range(columns):
            red, green, blue = np.int32(ROUNDING), np.int32(ROUNDING), np.int32(ROUNDING)
            start = np.uintp(across[x, 0])  # unsigned, so that Numba does not test for negative indices
            for tap in range(taps):
                weight, at = across_weights[np.uintp(x), np.uintp(tap)], start + np.uintp(tap)
                red = np.int32(red + np.int32(np.int32(reds[at]) * weight))
                green = np.int32(green + np.int32(np.int32(greens[at]) * weight))
                blue = np.int32(blue + np.int32(np.int32(blues[at]) * weight))
            target[np.uintp(3 * x)] = min(max(red >> WEIGHT_BITS, 0), 255)
            target[np.uintp(3 * x + 1)] = min(max(green >> WEIGHT_BITS, 0), 255)
            target[np.uintp(3 * x + 2)] = min(max(blue >> WEIGHT_BITS, 0), 255)
    sums = np.empty(columns * 3, np.int32)
    flat = out.reshape(rows, columns * 3)
    for y in range(rows):
        sums[:] = ROUNDING
        for tap in range(down[y, 1]):
            weight = down_weights[y, tap]
            source = narrow[down[y, 0] - first + tap]
            for x in range(sums.size):
                sums[x] += np.int32(source[x]) * weight
        for x in range(sums.size):
            flat[y, x] = min(max(sums[x] >> WEIGHT_BITS, 0), 255)
