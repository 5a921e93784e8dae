"""Opening devices, and the errors for those that do not exist. A stand-in replaces CuPy."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from danqing.engine.core.device import RELEASE_THRESHOLD_BYTES, _open_memory, open_device
from danqing.engine.core.errors import DanqingError


class Stream:
    """Counts synchronizations; the last entered stream is the `current` one."""

    made: list[Stream] = []
    current: list[int] = []

    def __init__(self, non_blocking: bool) -> None:
        assert non_blocking
        self.made.append(self)
        self.ptr, self.waited = len(self.made), 0

    def __enter__(self) -> Stream:
        self.current.append(self.ptr)
        return self

    def __exit__(self, *_: object) -> None:
        self.current.remove(self.ptr)

    def synchronize(self) -> None:
        self.waited += 1


def stand_in(monkeypatch: pytest.MonkeyPatch, gpus: int | Exception) -> list[int]:
    """Replaces CuPy by one that finds `gpus` GPUs; returns a list that receives the numbers of the GPUs entered."""
    used: list[int] = []

    def count() -> int:
        if isinstance(gpus, Exception):
            raise gpus
        return gpus

    class Gpu:
        compute_capability = "90"

        def __init__(self, number: int) -> None:
            self.number = number

        def __enter__(self) -> None:
            used.append(self.number)

        def __exit__(self, *_: object) -> None: ...

    Stream.made, Stream.current = [], []
    kept: list[Any] = []
    runtime = SimpleNamespace(
        getDeviceCount=count, cudaMemPoolAttrReleaseThreshold="threshold", kept=kept,
        deviceGetDefaultMemPool=lambda number: f"pool {number}", memPoolSetAttribute=lambda *given: kept.append(given),
    )  # fmt: skip
    pool = SimpleNamespace(used_bytes=lambda: 7)
    cublas = SimpleNamespace(setMathMode=lambda *given: modes.append(given))
    handles = SimpleNamespace(get_cublas_handle=lambda: "handle")
    modes: list[Any] = []
    library = SimpleNamespace(
        modes=modes,
        cuda=SimpleNamespace(runtime=runtime, Device=Gpu, Stream=Stream, device=handles, cublas=cublas),
        get_default_memory_pool=lambda: pool,
    )
    monkeypatch.setitem(sys.modules, "cupy", library)
    monkeypatch.setitem(sys.modules, "rmm", None)
    _open_memory.cache_clear()
    return used


def test_without_cupy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with (
        pytest.raises(DanqingError, match=r"--device cuda: .*cupy.*pip install 'danqing-engine\[cuda\]'"),
        open_device("cuda"),
    ):
        pass
    with open_device("auto") as device:
        assert device.kind == "cpu" and device.target == "cpu" and device.xp is np and device.stream == 0


@pytest.mark.parametrize(
    ("gpus", "name", "said"),
    [
        (RuntimeError("cudaErrorInsufficientDriver"), "cuda", "no GPU that CUDA can use: cudaErrorInsufficientDriver"),
        (2, "cuda:2", "no such GPU; available: cuda:0, cuda:1"),
        (0, "cuda", "no such GPU; available: none"),
        (1, "gpu", "must be cpu, cuda, cuda:0"),
        (1, "cuda:x", "must be cpu"),
        (1, "cpu:0", "must be cpu"),
    ],
)
def test_a_device_that_does_not_exist_is_refused(
    gpus: int | Exception, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, gpus)
    with pytest.raises(DanqingError, match=f"--device {name}: .*{said}"), open_device(name):
        pass


def test_every_thread_has_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    used = stand_in(monkeypatch, 2)
    with open_device("cuda:1", threads=3) as device:
        assert (device.kind, device.number, device.threads, device.target) == ("cuda", 1, 3, "sm_90")
        assert device.stream == 1 and used == [1]
        device.sum_in_float32()
        assert device.xp.modes == [("handle", 16)]  # cuBLAS sums in 32 bits
        seen: list[int] = []

        def work() -> None:
            with device.entered():
                seen.append(device.stream)
                device.wait()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
        assert seen == [2] and used == [1, 1]
        assert [s.waited for s in Stream.made] == [0, 1]


def test_a_device_opened_within_another_leaves_its_stream_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise CuPy and our kernels would use two streams, and read data that is not written yet."""
    used = stand_in(monkeypatch, 2)
    with open_device("cuda:1") as outer:
        with open_device("cuda:0") as inner:
            assert Stream.current == [outer.stream, inner.stream] == [1, 2] and used == [1, 0]
        assert Stream.current == [outer.stream] == [1] and inner.stream == 0
    assert Stream.current == []


def test_cupy_takes_its_memory_from_the_pool_of_rmm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls are those of rmm 26.10: an asynchronous resource with statistics, set as current on its GPU."""
    stand_in(monkeypatch, 2)
    with open_device("cuda:1") as device:
        assert device.held() == 7  # without RMM, CuPy's own pool
    assert sys.modules["cupy"].cuda.runtime.kept == [("pool 1", "threshold", RELEASE_THRESHOLD_BYTES)]
    done: list[Any] = []
    cupy = sys.modules["cupy"]
    cupy.cuda.Device = partial(recorded, done)
    cupy.cuda.set_allocator = lambda allocator: done.append(("allocator", allocator))
    counted = SimpleNamespace(allocation_counts=SimpleNamespace(current_bytes=1 << 20))
    resources = SimpleNamespace(
        CudaAsyncMemoryResource=lambda: "asynchronous",
        StatisticsResourceAdaptor=lambda upstream: counted if upstream == "asynchronous" else None,
        set_current_device_resource=lambda resource: done.append(("resource", resource)),
    )
    monkeypatch.setitem(sys.modules, "rmm", SimpleNamespace(mr=resources))
    monkeypatch.setitem(sys.modules, "rmm.allocators.cupy", SimpleNamespace(rmm_cupy_allocator="rmm's"))
    _open_memory.cache_clear()
    for _ in range(2):  # the second time the same pool
        assert _open_memory(1)() == 1 << 20
    assert done == ["enter cuda:1", ("resource", counted), "leave cuda:1", ("allocator", "rmm's")]


def test_features_that_do_not_fit_stay_in_page_locked_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, 1)
    pinned: list[tuple[Any, ...]] = []

    def empty_pinned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        pinned.append(shape)
        return np.empty(shape, dtype)

    monkeypatch.setitem(sys.modules, "cupyx", SimpleNamespace(empty_pinned=empty_pinned))
    block = np.arange(50, dtype=np.float16).reshape(25, 2)
    with open_device("cuda") as device:
        device.xp.asarray = lambda array: ("there", array)
        device.xp.cuda.runtime.memGetInfo = lambda: (200, 400)
        assert device.up_or_pinned(block) == ("there", block)
        device.xp.cuda.runtime.memGetInfo = lambda: (199, 400)
        here = device.up_or_pinned(block)
        assert pinned == [(25, 2)] and (here == block).all() and here.dtype == np.float16


@contextmanager
def recorded(done: list[Any], number: int) -> Iterator[None]:
    done.append(f"enter cuda:{number}")
    yield
    done.append(f"leave cuda:{number}")


def test_auto_opens_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, 1)
    with open_device("auto") as device:
        assert device.kind == "cuda" and device.number == 0
    stand_in(monkeypatch, RuntimeError("no driver"))
    with open_device("auto") as device:
        assert device.kind == "cpu"
