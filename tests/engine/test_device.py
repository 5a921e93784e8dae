"""Which device is opened, and what is said of one that there is not; CuPy is played by a stand-in."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.device import open_device
from engine.errors import DanqingError


class Stream:
    """Notes that it was used, and waited for."""

    made: list[Stream] = []

    def __init__(self, non_blocking: bool) -> None:
        assert non_blocking
        self.made.append(self)
        self.ptr, self.used, self.waited = len(self.made), 0, 0

    def use(self) -> None:
        self.used += 1

    def synchronize(self) -> None:
        self.waited += 1


def stand_in(monkeypatch: pytest.MonkeyPatch, gpus: int | Exception) -> list[int]:
    """A CuPy that finds so many GPUs; returns the numbers of those that get used."""
    used: list[int] = []

    def count() -> int:
        if isinstance(gpus, Exception):
            raise gpus
        return gpus

    def gpu(number: int) -> Any:
        return SimpleNamespace(use=lambda: used.append(number), compute_capability="90")

    Stream.made = []
    runtime = SimpleNamespace(getDeviceCount=count)
    library = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, Device=gpu, Stream=Stream))
    monkeypatch.setitem(sys.modules, "cupy", library)
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
        (2, "cuda:2", "there is no such GPU; of those there are: cuda:0, cuda:1"),
        (0, "cuda", "no such GPU; of those there are: none"),
        (1, "gpu", "neither cpu, nor cuda, cuda:0"),
        (1, "cuda:x", "neither cpu"),
        (1, "cpu:0", "neither cpu"),
    ],
)
def test_a_device_that_there_is_not(
    gpus: int | Exception, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, gpus)
    with pytest.raises(DanqingError, match=f"--device {name}: .*{said}"), open_device(name):
        pass


def test_every_thread_has_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used = stand_in(monkeypatch, 2)
    with open_device("cuda:1", threads=3) as device:
        assert (device.kind, device.number, device.threads, device.target) == ("cuda", 1, 3, "sm_90")
        assert device.stream == 1 and used == [1]
        device.enter()  # a second time changes nothing
        assert len(Stream.made) == 1
        seen: list[int] = []

        def work() -> None:
            device.enter()
            seen.append(device.stream)
            device.wait()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [2] and used == [1, 1] and [s.used for s in Stream.made] == [1, 1]
        assert [s.waited for s in Stream.made] == [0, 1]


def test_auto_takes_the_gpu_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, 1)
    with open_device("auto") as device:
        assert device.kind == "cuda" and device.number == 0
    stand_in(monkeypatch, RuntimeError("no driver"))
    with open_device("auto") as device:
        assert device.kind == "cpu"
