"""Samples CPU, memory and GPU usage in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

import psutil

from danqing.engine.core.nvml import GpuReading

INTERVAL_SECONDS = 0.1
"""Initial time between two readings."""
MAX_READINGS = 10_000
"""Maximum number of readings; at more, every second one is dropped and the interval is doubled."""


class Reading(NamedTuple):
    """Usage at one moment.

    Attributes:
        at: `time.perf_counter`.
        cores: mean number of cores that this process has kept busy since the last reading.
        resident: bytes of resident memory.
        gpu: the GPU's values; None on a CPU.
    """

    at: float
    cores: float
    resident: int
    gpu: GpuReading | None = None


class Sampler:
    """Takes readings during a `with` block, in its own thread.

    Args:
        meter: reads the GPU (`open_meter`); None on a CPU.

    Attributes:
        readings: in order of time.
        peak: largest resident memory, in bytes.
        seconds, cpu_seconds: duration of the block and the process's CPU time in it; set when the block ends.
    """

    def __init__(self, meter: Callable[[], GpuReading] | None = None) -> None:
        self._meter = meter
        self._interval = INTERVAL_SECONDS
        self.readings: list[Reading] = []
        self.peak = 0
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
        self._read()
        self.seconds = self._before - self.started
        self.cpu_seconds = self._cpu_before - self._cpu_started

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval):
            self._read()

    def _read(self) -> None:
        now, cpu = time.perf_counter(), self._cpu()
        cores = (cpu - self._cpu_before) / max(now - self._before, 1e-9)
        gpu = self._meter() if self._meter else None
        self.readings.append(Reading(now, cores, self._process.memory_info().rss, gpu))
        self.peak = max(self.peak, self.readings[-1].resident)
        if len(self.readings) > MAX_READINGS:
            self.readings, self._interval = self.readings[::2], 2 * self._interval
        self._before, self._cpu_before = now, cpu

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)
