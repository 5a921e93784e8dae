"""What the machine does meanwhile: looked at a few times a second, from a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

import psutil

from danqing.engine.core.nvml import GpuLook

EVERY, MOST = 0.1, 10_000
"""Seconds between two looks, to begin with; and looks that are kept: beyond so many, every second one."""


class Look(NamedTuple):
    """`at`: `time.perf_counter`. `cores`: how many this process kept busy since the last look. `resident`: bytes."""

    at: float
    cores: float
    resident: int
    gpu: GpuLook | None = None


class Sampler:
    """Looks while its `with` block runs; through `meter` at a GPU, too."""

    def __init__(self, meter: Callable[[], GpuLook] | None = None) -> None:
        self._meter = meter
        self._every = EVERY
        self.looks: list[Look] = []
        self.peak = 0
        """Most bytes that were resident at a look."""
        self._process = psutil.Process()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="danqing sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self.started = self._before = time.perf_counter()
        self._cpu_started = self._cpu_before = self._cpu()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()
        self._look()
        self.seconds = self._before - self.started
        self.cpu_seconds = self._cpu_before - self._cpu_started

    def _watch(self) -> None:
        while not self._stopped.wait(self._every):
            self._look()

    def _look(self) -> None:
        now, cpu = time.perf_counter(), self._cpu()
        cores = (cpu - self._cpu_before) / max(now - self._before, 1e-9)
        gpu = self._meter() if self._meter else None
        self.looks.append(Look(now, cores, self._process.memory_info().rss, gpu))
        self.peak = max(self.peak, self.looks[-1].resident)
        if len(self.looks) > MOST:
            self.looks, self._every = self.looks[::2], 2 * self._every
        self._before, self._cpu_before = now, cpu

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)
