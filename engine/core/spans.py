"""Rows per stage, and what its time went to."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

from danqing.engine.core.copies import copied

T = TypeVar("T", bound=Sized)

Range = Callable[[str], AbstractContextManager[Any]]


@dataclass
class Span:
    """`seconds` at work on `rows`, of which `passed` the gate behind and `failed` had an error; `starved` for rows from
    the stage before, `blocked` for room before the stage behind.

    `up`, `down`: bytes copied to and from the device. `dropped`: rows by the criterion they fell by. `waiting`: how
    many batches lie in the queue behind. Only where it is profiled: `batches` that were packed and how full they were
    (`load`, summed), bytes `taken` in and `made`, the most bytes of the device's memory `held` by arrays.
    """

    rows: int = 0
    passed: int = 0
    failed: int = 0
    seconds: float = 0.0
    starved: float = 0.0
    blocked: float = 0.0
    up: int = 0
    down: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    waiting: Callable[[], int] | None = None
    batches: int = 0
    load: float = 0.0
    taken: int = 0
    made: int = 0
    held: int = 0

    def __add__(self, other: Span) -> Span:
        """Both together, as of two devices."""
        names = [field.name for field in fields(self) if field.name != "waiting"]
        sums: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Span(**sums)

    @property
    def fill(self) -> float | None:
        """How full batches were, on average; None where they are taken as they come."""
        return self.load / self.batches if self.batches else None


class Event(NamedTuple):
    """A stage at work on one batch: `started` by `time.perf_counter`."""

    stage: str
    thread: str
    started: float
    seconds: float
    rows: int


MOST = 100_000
"""Batches that are noted one by one; of a long run, the first."""


class Spans(dict[str, Span]):
    """Stage → rows and seconds, in order of first use.

    Args:
        profiled: notes every batch by itself, too (`events`), and what each stage takes in and makes.
        named: opens a range of a stage's name around its work, for a profiler outside (NVTX).
    """

    def __init__(self, profiled: bool = False, named: Range | None = None) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.profiled = profiled
        self._named = named or nullcontext

    def open(self, names: Iterable[str]) -> None:
        """Gives stages their places, for they may begin in any order."""
        for name in names:
            self.setdefault(name, Span())

    @contextmanager
    def __call__(self, name: str, rows: int) -> Iterator[None]:
        started, up, down = time.perf_counter(), copied.up, copied.down
        try:
            with self._named(name):
                yield
        finally:
            span = self._book(name, started, rows)
            span.up += copied.up - up
            span.down += copied.down - down

    def timed(self, name: str, batches: Iterable[T], size: Callable[[T], int] | None = None) -> Iterator[T]:
        """The same stream, the time it takes to produce each batch booked on `name`; also the bytes that `size` says,
        where that is profiled."""
        stream = iter(batches)
        while True:
            started = time.perf_counter()
            with self._named(name):
                batch = next(stream, None)
            self._book(name, started, 0 if batch is None else len(batch))
            if batch is None:
                return
            self[name].passed += len(batch)
            if size and self.profiled:
                self[name].made += size(batch)
            yield batch

    def _book(self, name: str, started: float, rows: int) -> Span:
        seconds = time.perf_counter() - started
        span = self.setdefault(name, Span())
        span.rows += rows
        span.seconds += seconds
        if self.profiled and len(self.events) < MOST:
            self.events.append(Event(name, threading.current_thread().name, started, seconds, rows))
        return span
