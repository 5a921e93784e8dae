"""Copies between host and device are counted by stage. A stand-in replaces the GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from danqing.engine.core.copies import copied
from danqing.engine.core.device import Device
from danqing.engine.core.nvml import GpuReading, open_meter
from danqing.engine.core.spans import Spans
from danqing.engine.stages import decode
from tests.conftest import picture
from tests.nvml import BUS_ADDRESS, stand_in


class OnGpu:
    """An array with the attributes of an array in GPU memory."""

    __cuda_array_interface__: dict[str, Any] = {}

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.nbytes = array, array.nbytes

    def get(self) -> np.ndarray:
        return self.array


@pytest.fixture
def gpu() -> Iterator[Device]:
    library = SimpleNamespace(asarray=lambda array: array if isinstance(array, OnGpu) else OnGpu(array))
    with ThreadPoolExecutor(1) as pool:
        yield Device("cuda", 1, pool, library)


def test_copies_are_booked_on_the_stage_that_makes_them(gpu: Device) -> None:
    spans, host = Spans(), np.arange(100, dtype=np.int32)
    with spans("first", 1):
        there = gpu.up(host)
        assert isinstance(there, OnGpu) and gpu.up(there) is there
        gpu.up([1.0, 2.0])
        gpu.count_copied(1000)
    with spans("second", 1):
        assert gpu.down(there) is host and gpu.down(host) is host
    assert (spans["first"].up, spans["first"].down) == (400 + 16 + 1000, 0)
    assert (spans["second"].up, spans["second"].down) == (0, 400)


def test_threads_do_not_see_each_others_copies(gpu: Device) -> None:
    before = copied.up
    with ThreadPoolExecutor(1) as other:
        assert other.submit(lambda: (gpu.count_copied(5), copied.up)[1]).result() == 5
    assert copied.up == before


def test_on_a_cpu_nothing_is_copied(device: Device) -> None:
    spans, host = Spans(), np.arange(9)
    with spans("stage", 1):
        assert device.up(host) is host and device.down(host) is host and device.held() == 0
    assert spans["stage"].up == spans["stage"].down == 0


def test_pictures_that_the_host_decodes_are_copied_as_pixels(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [np.zeros((30, 20, 3), np.uint8), np.zeros((7, 5, 3), np.uint8), None, np.zeros((2, 2, 3), np.uint8)]
    nvimgcodec = SimpleNamespace(
        Decoder=lambda **options: SimpleNamespace(decode=lambda files, params, cuda_stream: pictures), DecodeParams=dict
    )
    monkeypatch.setattr(decode, "_nvimgcodec", lambda: nvimgcodec)
    files = [picture(1, form="JPEG"), picture(1, form="PNG"), b"<html>", picture(1, form="TIFF")]
    before = copied.up
    assert [None if found is None else found.array for found in decode.GpuDecoder(gpu).decode(files)] == pictures
    assert copied.up - before == len(files[0]) + 7 * 5 * 3 + len(files[2]) + 2 * 2 * 3


def test_the_gpu_decoder_leaves_truncated_jpeg_files_out(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvJPEG would fill the missing part with grey and report no error."""
    given: list[bytes] = []

    def decode_all(files: list[bytes], params: object, cuda_stream: int) -> list[np.ndarray]:
        given.extend(files)
        return [np.zeros((2, 2, 3), np.uint8) for _ in files]

    nvimgcodec = SimpleNamespace(Decoder=lambda **options: SimpleNamespace(decode=decode_all), DecodeParams=dict)
    monkeypatch.setattr(decode, "_nvimgcodec", lambda: nvimgcodec)
    whole, png = picture(1, form="JPEG"), picture(1, form="PNG")
    files = [whole[:-2], whole, whole[: len(whole) // 2], whole + b"\n\0", png[:-9], whole[:200]]
    found = decode.GpuDecoder(gpu).decode(files)
    assert [picture is None for picture in found] == [True, False, True, False, False, True]
    assert given == [whole, whole + b"\n\0", png[:-9]]


def test_every_call_of_a_stage_opens_a_range_with_its_name() -> None:
    opened: list[str] = []

    @contextmanager
    def named(name: str) -> Iterator[None]:
        opened.append(name)
        yield

    spans = Spans(named=named)
    with spans("decode", 1):
        pass
    assert [len(batch) for batch in spans.timed("read", [[1, 2], [3]])] == [2, 1]
    assert opened == ["decode", "read", "read", "read"]  # the last call finds the end


def test_nvtx_and_nvml_are_called_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    import nvtx

    with Spans(named=lambda name: nvtx.annotate(name, domain="danqing"))("decode", 1):
        pass
    stand_in(monkeypatch)
    reading = open_meter(BUS_ADDRESS)()
    np.testing.assert_array_equal(reading, GpuReading(0.87, 0.4, np.nan, 3 << 30, 350.0, 2000 * 1024, 7 * 1024))


def test_profiling_a_gpu_without_its_packages_names_the_extra(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    from danqing.engine.core.errors import DanqingError
    from danqing.profiling.profile import Limits
    from danqing.profiling.watch import Watch

    gpu.xp.cuda = SimpleNamespace(Device=lambda number: SimpleNamespace(pci_bus_id=BUS_ADDRESS))
    monkeypatch.setitem(sys.modules, "nvtx", None)
    stand_in(monkeypatch)
    with Watch(gpu, Limits({}, 1.0)).spans("decode", 1):  # NVTX is not needed
        pass
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(DanqingError, match=r"danqing-engine\[cuda\]"):
        Watch(gpu, Limits({}, 1.0))
