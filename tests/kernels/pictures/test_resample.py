"""Resizing, compared with Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image

from danqing.kernels.pictures.resampling import CUBIC, LANCZOS, LINEAR, resample

FILTERS = {LANCZOS: Image.Resampling.LANCZOS, CUBIC: Image.Resampling.BICUBIC, LINEAR: Image.Resampling.BILINEAR}


def by_pillow(picture: np.ndarray, rows: int, columns: int, interpolation: int) -> np.ndarray:
    """Resizes across, then down: the result of one call in every Pillow before 13."""
    across = Image.fromarray(picture).resize((columns, len(picture)), FILTERS[interpolation])
    return np.asarray(across.resize((columns, rows), FILTERS[interpolation]))


def test_every_size_is_bit_equal_to_pillow() -> None:
    chance = np.random.default_rng(0)
    for number in range(300):
        height, width, rows, columns = (int(side) for side in chance.integers(1, 120, 4))
        picture = chance.integers(0, 256, (height, width, 3), dtype=np.uint8)
        out = np.empty((rows, columns, 3), np.uint8)
        interpolation = (CUBIC, LINEAR, LANCZOS)[number % 3]
        resample(picture, rows, columns, 0, 0, out, interpolation)
        expected = by_pillow(picture, rows, columns, interpolation)
        assert (out == expected).all(), (height, width, rows, columns, interpolation)


def test_a_window_equals_the_crop_of_the_resized_picture() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    whole, window = np.empty((50, 64, 3), np.uint8), np.empty((20, 31, 3), np.uint8)
    resample(picture, 50, 64, 0, 0, whole, CUBIC)
    resample(picture, 50, 64, 13, 9, window, CUBIC)
    assert (window == whole[13:33, 9:40]).all()
