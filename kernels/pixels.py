"""Pixel statistics of a decoded picture in one pass over its pixels."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# OpenCV's cvtColor for 8-bit pictures: BT.601 weights in fixed point, 15 bits, rounded.
RED, GREEN, BLUE, SHIFT = 9798, 19235, 3735, 15
HALF = 1 << (SHIFT - 1)


@njit(nogil=True, cache=True, inline="always")
def _grey(image: np.ndarray, y: int, x: int) -> np.int64:
    red, green, blue = np.int64(image[y, x, 0]), np.int64(image[y, x, 1]), np.int64(image[y, x, 2])
    return (red * RED + green * GREEN + blue * BLUE + HALF) >> SHIFT


@njit(nogil=True, cache=True)
def _fill_grey(image: np.ndarray, y: int, row: np.ndarray) -> None:
    for x in range(row.size):
        row[x] = _grey(image, y, x)


@njit(nogil=True, cache=True)
def _laplacian_sums(above: np.ndarray, here: np.ndarray, below: np.ndarray) -> tuple[np.int64, np.int64]:
    """Sum and sum of squares of the 4-neighbour Laplacian along one row (borders reflected, 101)."""
    width = here.size
    total, squares = np.int64(0), np.int64(0)
    for x in range(width):
        left = here[x - 1] if x > 0 else here[min(1, width - 1)]
        right = here[x + 1] if x < width - 1 else here[max(width - 2, 0)]
        value = np.int64(above[x] + below[x] + left + right - 4 * here[x])
        total += value
        squares += value * value
    return total, squares


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
    rows = np.empty((3, width), np.int32)
    histogram = np.zeros(256, np.int64)
    total, squares = np.int64(0), np.int64(0)
    _fill_grey(image, 0, rows[0])
    if height > 1:
        _fill_grey(image, 1, rows[1])
    for y in range(height):
        here = rows[y % 3]
        # Border rule of OpenCV (BORDER_REFLECT_101): the row beyond the edge is the one before the edge.
        above = rows[(y - 1) % 3] if y > 0 else rows[min(1, height - 1)]
        if y == height - 1:
            below = rows[(y - 1) % 3] if height > 1 else here
        else:
            below = rows[(y + 1) % 3]
        for x in range(width):
            histogram[here[x]] += 1
        row_total, row_squares = _laplacian_sums(above, here, below)
        total += row_total
        squares += row_squares
        if y + 2 < height:
            _fill_grey(image, y + 2, rows[(y + 2) % 3])

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
