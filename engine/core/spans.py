"""Spans: how many rows each stage processed, and how it spent its time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

from danqing.engine.core.copies import copied

T = TypeVar("T", bound=Sized)

OpenRange = Callable[[str], AbstractContextManager[Any]]
"""Opens a named range of an external profiler (NVTX)."""


@dataclass
class Span:
    """Counts and times of one stage.

    Attributes:
        rows: rows processed.
        passed: rows kept by the gate that follows.
        failed: rows with an error.
        seconds: time spent processing.
        starved_seconds: time spent waiting for input.
        blocked_seconds: time spent waiting for space in the output queue.
        up, down: bytes copied to and from the device.
        dropped: rows dropped by the gate that follows, by criterion.
        waiting: returns the number of batches in the output queue.

    Only set while profiling:
        batches: number of batches that were packed.
        fill_sum: sum over these batches of how full they were (0 to 1).
        bytes_read, bytes_written: bytes of the columns read and written.
        peak_device_bytes: largest number of bytes of device memory in use after a batch.
    """

    rows: int = 0
    passed: int = 0
    failed: int = 0
    seconds: float = 0.0
    starved_seconds: float = 0.0
    blocked_seconds: float = 0.0
    up: int = 0
    down: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    waiting: Callable[[], int] | None = None
    batches: int = 0
    fill_sum: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_device_bytes: int = 0

    def __add__(self, other: Span) -> Span:
        """Returns the sums, for two workers that run the same stage."""
        names = [field.name for field in fields(self) if field.name != "waiting"]
        sums: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Span(**sums)

    @property
    def fill(self) -> float | None:
        """Mean fill of the packed batches (0 to 1); None if the stage does not pack, or without profiling."""
        return self.fill_sum / self.batches if self.batches else None


class Event(NamedTuple):
    """One batch in one stage. `started` is a value of `time.perf_counter`."""

    stage: str
    thread: str
    started: float
    seconds: float
    rows: int


MAX_EVENTS = 100_000
"""Maximum number of events kept; later batches only count in the sums."""


class Spans(dict[str, Span]):
    """Maps each stage's name to its `Span`, in the order of first use.

    Args:
        profiled: also record every batch (`events`) and the values of `Span` that are only set while profiling.
        named: opens a range with the stage's name around every call, for an external profiler.

    Called with a stage's name and a number of rows, it times a `with` block:

    >>> spans = Spans()
    >>> with spans("decode", rows=8):
    ...     pass
    >>> spans["decode"].rows
    8
    """

    def __init__(self, profiled: bool = False, named: OpenRange | None = None) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.profiled = profiled
        self._named = named or nullcontext

    def open(self, names: Iterable[str]) -> None:
        """Adds empty spans, which fixes the order of stages that start concurrently."""
        for name in names:
            self.setdefault(name, Span())

    def add(self, other: Mapping[str, Span]) -> None:
        """Adds the counts and times of another thread or process, without its events."""
        for name, span in other.items():
            self[name] = self.get(name, Span()) + span

    def sums(self) -> dict[str, Span]:
        """Copies the counts and times, without `Span.waiting`, so that they can be sent to another process."""
        return {name: span + Span() for name, span in self.items()}

    @contextmanager
    def __call__(self, name: str, rows: int) -> Iterator[None]:
        started, up, down = time.perf_counter(), copied.up, copied.down
        try:
            with self._named(name):
                yield
        finally:
            span = self._record(name, started, rows)
            span.up += copied.up - up
            span.down += copied.down - down

    def timed(self, name: str, batches: Iterable[T], size: Callable[[T], int] | None = None) -> Iterator[T]:
        """Yields the batches, and adds the time to produce each to the span `name`.

        Args:
            size: returns the bytes of a batch, which are added to `bytes_written` while profiling.
        """
        stream = iter(batches)
        while True:
            started = time.perf_counter()
            with self._named(name):
                batch = next(stream, None)
            self._record(name, started, 0 if batch is None else len(batch))
            if batch is None:
                return
            self[name].passed += len(batch)
            if size and self.profiled:
                self[name].bytes_written += size(batch)
            yield batch

    def _record(self, name: str, started: float, rows: int) -> Span:
        seconds = time.perf_counter() - started
        span = self.setdefault(name, Span())
        span.rows += rows
        span.seconds += seconds
        if self.profiled and len(self.events) < MAX_EVENTS:
            self.events.append(Event(name, threading.current_thread().name, started, seconds, rows))
        return span
