"""Time and rows per stage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T", bound=Sized)


@dataclass
class Span:
    rows: int = 0
    seconds: float = 0.0


class Spans(dict[str, Span]):
    """Stage → rows seen and busy seconds, in order of first use."""

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
