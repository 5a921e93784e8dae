"""Rows per stage, and what its time went to."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T", bound=Sized)


@dataclass
class Span:
    """`seconds` at work, `starved` for rows from the stage before, `blocked` for room before the stage behind."""

    rows: int = 0
    seconds: float = 0.0
    starved: float = 0.0
    blocked: float = 0.0


class Spans(dict[str, Span]):
    """Stage → rows and seconds, in order of first use."""

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
            span = self.setdefault(name, Span())
            span.rows += rows
            span.seconds += time.perf_counter() - started

    def timed(self, name: str, batches: Iterable[T]) -> Iterator[T]:
        """The same stream, the time it takes to produce each batch booked on `name`."""
        stream = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(stream, None)
            span = self.setdefault(name, Span())
            span.seconds += time.perf_counter() - started
            if batch is None:
                return
            span.rows += len(batch)
            yield batch
