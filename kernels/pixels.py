"""Pixel statistics of a decoded picture in one pass over its pixels."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# OpenCV's cvtColor for 8-bit pictures: BT.601 weights in fixed point, 15 bits, rounded.
RED, GREEN, BLUE, SHIFT = 9798, 19235, 3735, 15
HALF = 1 << (SHIFT - 1)


@njit(nogil=True, cache=True)
def _fill_grey(pixels: np.ndarray, grey: np.ndarray) -> None:
    """One row of interleaved RGB to grey values: int32, so that the sums below stay within one vector lane."""
    for x in range(grey.size):
        red, green, blue = np.int32(pixels[3 * x]), np.int32(pixels[3 * x + 1]), np.int32(pixels[3 * x + 2])
        grey[x] = (red * RED + green * GREEN + blue * BLUE + HALF) >> SHIFT


@njit(nogil=True, cache=True)
def _laplacian_sums(above: np.ndarray, here: np.ndarray, below: np.ndarray) -> tuple[np.int64, np.int64]:
    """Sum and sum of squares of the 4-neighbour Laplacian along one row (borders reflected, 101)."""
    last = here.size - 1
    total, squares = np.int64(0), np.int64(0)
    for x in range(1, last):
        at = np.uintp(x)  # unsigned: Numba need not look for negative positions
        beside = here[at - np.uintp(1)] + here[at + np.uintp(1)]
        value = np.int32(above[at] + below[at] + beside - 4 * here[at])
        total += value
        squares += np.int32(value * value)
    for x in range(0, last + 1, max(last, 1)):  # the two edges, which may be one
        value = np.int32(above[x] + below[x] + 2 * here[min(abs(x - 1), last)] - 4 * here[x])
        total += value
        squares += np.int32(value * value)
    return total, squares


@njit(nogil=True, cache=True)
def _count(grey: np.ndarray, histograms: np.ndarray) -> None:
    """Adds a row to the histogram, in four parts: like neighbours would wait for each other's count."""
    for x in range(grey.size):
        histograms[x & 3, grey[x] & 255] += 1


@njit(nogil=True, cache=True)
def pixel_statistics(image: np.ndarray) -> tuple[float, float, float]:
    """Contrast, sharpness and information of one picture, at full resolution.

    Args:
        image: uint8 (height, width, 3), RGB, any row stride.

    Returns:
        `pixel_std`: standard deviation of the grey values, as `numpy.std`;
        `laplacian_variance`: variance of `cv2.Laplacian(grey, CV_64F)` (kernel size 1, default border);
        `image_entropy`: -sum p log2 p over the 256-bin grey histogram, in bits.

    Only three grey rows exist at a time. All sums are exact integers, so neither the order of the pixels nor
    the number of threads can change a figure.
    """
    height, width = image.shape[0], image.shape[1]
    lines = np.ascontiguousarray(image).reshape(height, width * 3)
    rows = np.empty((3, width), np.int32)
    histograms = np.zeros((4, 256), np.int64)
    total, squares = np.int64(0), np.int64(0)
    for y in range(min(height, 2)):
        _fill_grey(lines[y], rows[y])
    for y in range(height):
        # Border rule of OpenCV (BORDER_REFLECT_101): the row beyond the edge is the one before the edge.
        above, below = abs(y - 1) if height > 1 else 0, y + 1 if y + 1 < height else max(y - 1, 0)
        row_total, row_squares = _laplacian_sums(rows[above % 3], rows[y % 3], rows[below % 3])
        total += row_total
        squares += row_squares
        _count(rows[y % 3], histograms)
        if y + 2 < height:
            _fill_grey(lines[y + 2], rows[(y + 2) % 3])

    histogram = histograms.sum(axis=0)
    pixels = float(height * width)
    grey_sum, grey_squares, entropy = 0.0, 0.0, 0.0
    for value in range(256):
        count = float(histogram[value])
        if count > 0:
            grey_sum += count * value
            grey_squares += count * value * value
            entropy -= count / pixels * math.log2(count / pixels)
    mean = grey_sum / pixels
    pixel_std = math.sqrt(max(grey_squares / pixels - mean * mean, 0.0))
    laplacian_mean = total / pixels
    laplacian_variance = squares / pixels - laplacian_mean * laplacian_mean
    return pixel_std, laplacian_variance, max(entropy, 0.0)
