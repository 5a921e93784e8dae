"""Resizing in batches, compared with Pillow and with the kernel that resizes one picture at a time."""

from __future__ import annotations

import numpy as np
import pytest

from danqing.engine.core.device import Device, open_device
from danqing.kernels.pictures import resample_batches
from danqing.kernels.pictures.resample_batches import Window, resample_pictures
from danqing.kernels.pictures.resampling import CUBIC, LANCZOS, LINEAR, resample
from tests.kernels.pictures.test_resample import by_pillow

FILTERS = CUBIC, LINEAR, LANCZOS


def noise(chance: np.random.Generator, height: int, width: int) -> np.ndarray:
    return chance.integers(0, 256, (height, width, 3), dtype=np.uint8)


def in_parts(flat: np.ndarray, windows: list[Window]) -> list[np.ndarray]:
    ends = np.cumsum([3 * window.rows * window.columns for window in windows])
    parts = np.split(flat, ends[:-1])
    return [part.reshape(w.rows, w.columns, 3) for part, w in zip(parts, windows, strict=True)]


@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_batch_of_many_sizes_is_bit_equal_to_pillow(device: Device, interpolation: int) -> None:
    chance = np.random.default_rng(interpolation)
    sides = [*chance.integers(1, 120, (60, 4)).tolist(), [1, 1, 5, 7], [1, 90, 30, 1], [90, 1, 1, 30], [64, 64, 64, 64]]
    pictures = [noise(chance, height, width) for height, width, _, _ in sides]
    windows = [Window(rows, columns, 0, 0, rows, columns) for _, _, rows, columns in sides]
    flat = resample_pictures(device, pictures, windows, interpolation)
    for picture, window, found in zip(pictures, windows, in_parts(flat, windows), strict=True):
        assert (found == by_pillow(picture, window.rows, window.columns, interpolation)).all(), (picture.shape, window)


def test_windows_strides_and_a_small_intermediate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small intermediate splits windows into parts of a few rows; two pictures are not contiguous."""
    chance = np.random.default_rng(1)
    pictures = [noise(chance, 70, 90), noise(chance, 300, 8)[::-1, 2:5], noise(chance, 40, 64)[::2, 3:33]]
    windows = [Window(50, 64, 13, 9, 20, 31), Window(64, 30, 2, 0, 60, 30), Window(31, 47, 0, 40, 31, 7)]
    expected = [np.empty((w.rows, w.columns, 3), np.uint8) for w in windows]
    for picture, w, out in zip(pictures, windows, expected, strict=True):
        resample(np.ascontiguousarray(picture), w.height, w.width, w.top, w.left, out, CUBIC)
    with open_device(threads=3) as device:
        for room in (resample_batches.INTERMEDIATE_BYTES, 4000, 1):
            monkeypatch.setattr(resample_batches, "INTERMEDIATE_BYTES", room)
            found = in_parts(resample_pictures(device, pictures, windows, CUBIC), windows)
            assert all((a == b).all() for a, b in zip(found, expected, strict=True))
        assert resample_pictures(device, [], [], CUBIC).shape == (0,)
