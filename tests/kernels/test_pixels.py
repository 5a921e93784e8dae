from __future__ import annotations

import cv2
import numpy as np
import pytest

from kernels.pixels import _fill_grey, pixel_statistics


def reference(image: np.ndarray) -> tuple[float, float, float]:
    """The same three figures by OpenCV and NumPy."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    share = share[share > 0]
    return grey.std(), cv2.Laplacian(grey, cv2.CV_64F).var(), -(share * np.log2(share)).sum()


def test_grey_is_bit_equal_to_opencv_for_every_colour_step() -> None:
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    image = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels) ** 2, len(levels), 3)
    grey = np.empty(image.shape[:2], np.int32)
    for y in range(len(image)):
        _fill_grey(image[y].reshape(-1), grey[y])
    assert (grey == cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)).all()


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (2, 2), (3, 2), (2, 3), (64, 48), (301, 203)]
)
def test_statistics_equal_opencv_at_every_size(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(shape[0]).integers(0, 256, (*shape, 3), dtype=np.uint8)
    np.testing.assert_allclose(pixel_statistics(image), reference(image), rtol=1e-9, atol=1e-9)


def test_flat_and_strided_pictures() -> None:
    flat = np.full((20, 30, 3), 77, np.uint8)
    np.testing.assert_allclose(pixel_statistics(flat), (0, 0, 0), atol=1e-12)
    wide = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    window = wide[::2, 3:33]
    np.testing.assert_allclose(pixel_statistics(window), reference(np.ascontiguousarray(window)), rtol=1e-9)
