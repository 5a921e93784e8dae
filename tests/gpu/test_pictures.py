"""Decoding, pixel statistics and resizing on a GPU, compared with the CPU. Pixels stay on the device."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from danqing.engine.core.device import Device
from danqing.engine.stages.decode import open_decoder
from danqing.engine.stages.fingerprint import HASHED
from danqing.engine.stages.resize import open_resizer
from danqing.kernels.pictures.pixels import pixel_statistics
from danqing.trt_models.card import ImageInput
from tests.conftest import picture

pytestmark = pytest.mark.gpu
INPUTS = [ImageInput(224, 256), ImageInput(224, 224, "stretch", "linear")]
PHOTOGRAPHS = [
    p.read_bytes() for p in sorted((Path(str(resources.files("danqing.engine"))) / "demo" / "photos").glob("*.jpg"))
]


def test_pictures_are_decoded_into_device_memory(gpu: Device, device: Device) -> None:
    files = [*PHOTOGRAPHS, picture(1, form="PNG"), b"<html>", PHOTOGRAPHS[0][:3000]]
    there, here = open_decoder(gpu).decode(files), open_decoder(device).decode(files)
    assert [p is None for p in there] == [p is None for p in here]
    for on_gpu, on_cpu in zip(there, here, strict=True):
        if on_gpu is not None:
            assert hasattr(on_gpu, "__cuda_array_interface__")
            assert np.abs(on_gpu.get().astype(int) - on_cpu).mean() < 1


def test_statistics_of_a_batch_of_many_sizes_equal_the_cpus(gpu: Device, device: Device) -> None:
    chance = np.random.default_rng(0)
    shapes = [(1, 1), (1, 9), (9, 1), (3, 257), (64, 256), (65, 513), (1080, 1920), (333, 4001)]
    pictures = [chance.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    there = pixel_statistics(gpu, [gpu.xp.asarray(p) for p in pictures]).get()
    np.testing.assert_allclose(there, pixel_statistics(device, pictures), rtol=1e-12, atol=1e-12)


def test_our_kernels_resize_to_equal_pixels(gpu: Device, device: Device) -> None:
    """On photographs and odd sizes, with a JPEG round trip."""
    chance = np.random.default_rng(0)
    shapes = [(1, 1), (1, 9), (9, 1), (224, 224), (1080, 1920), (333, 401)]
    pictures: list[Any] = [p for p in open_decoder(device).decode(PHOTOGRAPHS) if p is not None]
    pictures += [chance.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    inputs = [*INPUTS, HASHED, ImageInput(224, 256, "stretch", "linear", 75)]
    there = open_resizer(inputs, gpu, "kernel")([gpu.xp.asarray(p) for p in pictures])
    for on_gpu, on_cpu in zip(there, open_resizer(inputs, device)(pictures), strict=True):
        assert (on_gpu.get() == on_cpu).all()


def test_our_kernels_resize_pictures_that_the_gpu_decoded(gpu: Device, device: Device) -> None:
    decoded = [p for p in open_decoder(gpu).decode(PHOTOGRAPHS) if p is not None]
    windows = [p[1:-1:2, 3:-5] for p in decoded]  # not contiguous
    expected = open_resizer(INPUTS, device)([np.ascontiguousarray(gpu.down(p)) for p in (*decoded, *windows)])
    for on_gpu, on_cpu in zip(open_resizer(INPUTS, gpu, "kernel")([*decoded, *windows]), expected, strict=True):
        assert (on_gpu.get() == on_cpu).all()


def test_dali_resizes_close_to_the_cpu(gpu: Device, device: Device) -> None:
    files = [*PHOTOGRAPHS, picture(1, size=(509, 320))]  # nvJPEG pads the rows of the last
    pictures: list[Any] = [p for p in open_decoder(device).decode(files) if p is not None]
    there = open_resizer(INPUTS, gpu, "dali")(open_decoder(gpu).decode(files))
    for on_gpu, on_cpu in zip(there, open_resizer(INPUTS, device)(pictures), strict=True):
        assert np.abs(on_gpu.get().astype(int) - on_cpu).mean() < 1
