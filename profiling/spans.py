"""Rows per stage, and what its time went to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

T = TypeVar("T", bound=Sized)


@dataclass
class Span:
    """`seconds` at work on `rows`, of which `passed` the gate behind; `starved` for rows from the stage
    before, `blocked` for room before the stage behind."""

    rows: int = 0
    passed: int = 0
    seconds: float = 0.0
    starved: float = 0.0
    blocked: float = 0.0


class Event(NamedTuple):
    """A stage at work on one batch: `started` by `time.perf_counter`."""

    stage: str
    thread: str
    started: float
    seconds: float
    rows: int


class Spans(dict[str, Span]):
    """Stage → rows and seconds, in order of first use.

    `events`: every batch by itself, if that is wanted (a list to begin with).
    """

    def __init__(self, events: list[Event] | None = None) -> None:
        super().__init__()
        self.events = events

    def open(self, names: Iterable[str]) -> None:
        """Gives stages their places, for they may begin in any order."""
        for name in names:
            self.setdefault(name, Span())

    @contextmanager
    def __call__(self, name: str, rows: int) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._book(name, started, rows)

    def timed(self, name: str, batches: Iterable[T]) -> Iterator[T]:
        """The same stream, the time it takes to produce each batch booked on `name`."""
        stream = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(stream, None)
            self._book(name, started, 0 if batch is None else len(batch))
            if batch is None:
                return
            self[name].passed += len(batch)
            yield batch

    def _book(self, name: str, started: float, rows: int) -> None:
        seconds = time.perf_counter() - started
        span = self.setdefault(name, Span())
        span.rows += rows
        span.seconds += seconds
        if self.events is not None:
            self.events.append(Event(name, threading.current_thread().name, started, seconds, rows))
