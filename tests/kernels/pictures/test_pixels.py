"""Pixel statistics, compared with OpenCV and NumPy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numba import njit

from danqing.engine.core.device import Device, open_device
from danqing.kernels.pictures import pixels
from danqing.kernels.pictures.pixels import fill_grey, grey_level, pixel_statistics, variance

SHAPES = [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (2, 2), (3, 2), (2, 3), (64, 48), (301, 203), (1025, 30), (30, 1025)]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape[0]).integers(0, 256, (*shape, 3), dtype=np.uint8)


def reference(image: np.ndarray) -> tuple[float, float, float]:
    """Computes the statistics with OpenCV and NumPy."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    share = share[share > 0]
    return grey.std(), cv2.Laplacian(grey, cv2.CV_64F).var(), -(share * np.log2(share)).sum()


def test_grey_is_bit_equal_to_opencv_for_every_colour() -> None:
    levels = np.arange(256, dtype=np.uint8)
    green, blue = np.meshgrid(levels, levels)
    for red in levels:
        image = np.stack([np.full_like(green, red), green, blue], -1)
        expected = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        colours = image.astype(np.int32)
        assert (grey_level(colours[..., 0], colours[..., 1], colours[..., 2]) == expected).all()
        assert (compiled_grey(image) == expected).all()


def compiled_grey(image: np.ndarray) -> np.ndarray:
    """Runs the vectorised loop for CPUs on a picture."""
    size = image.shape[0] * image.shape[1]
    red, green, blue, grey = np.empty((4, size), np.uint8)
    _compiled(image.ctypes.data, size, red, green, blue, grey)
    return grey.reshape(image.shape[:2])


@njit
def _compiled(address, size, red, green, blue, grey):
    fill_grey(address, size, red, green, blue, grey)


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_equal_opencv_at_every_size(device: Device, shape: tuple[int, int]) -> None:
    image = noise(*shape)
    np.testing.assert_allclose(pixel_statistics(device, [image])[0], reference(image), rtol=1e-9, atol=1e-9)


def test_results_do_not_depend_on_batch_tiles_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [noise(*shape) for shape in SHAPES]
    with open_device(threads=1) as one, open_device(threads=3) as three:
        one_by_one = np.concatenate([pixel_statistics(one, [image]) for image in images])
        assert (pixel_statistics(three, images) == one_by_one).all()
        monkeypatch.setitem(pixels.TILE_SHAPES, "cpu", (7, 16))
        assert (pixel_statistics(three, images) == one_by_one).all()
        assert pixel_statistics(one, []).shape == (0, 3)


def test_flat_and_strided_pictures(device: Device) -> None:
    flat = np.full((20, 30, 3), 77, np.uint8)
    np.testing.assert_allclose(pixel_statistics(device, [flat])[0], (0, 0, 0), atol=1e-12)
    wide = noise(40, 64)
    for window in (wide[::2, 3:33], wide[::-1], wide[:, ::2], wide[:, :, ::-1]):
        expected = reference(np.ascontiguousarray(window))
        np.testing.assert_allclose(pixel_statistics(device, [window])[0], expected, rtol=1e-9)


def test_one_different_pixel_in_a_large_flat_picture_counts(device: Device) -> None:
    image = np.full((4000, 5000, 3), 254, np.uint8)
    image[1234, 2345] = 255
    np.testing.assert_allclose(pixel_statistics(device, [image])[0], reference(image), rtol=1e-9)
    assert pixel_statistics(device, [image])[0, 1] == pytest.approx(20 / image[..., 0].size, rel=1e-12)


def test_variance_is_exact_for_the_largest_pictures() -> None:
    """All values but one are equal, and far from zero."""
    pixels = 179_000_000
    for value, other in ((255, 254), (-1020, -1019), (1020, -1020), (0, 1)):
        total, squares = value * (pixels - 1) + other, value**2 * (pixels - 1) + other**2
        expected = (value - other) ** 2 * (pixels - 1) / pixels**2
        assert variance(np.int64(pixels), np.int64(total), np.int64(squares)) == pytest.approx(expected, rel=1e-12)
