"""Runs a chain of iterators concurrently, one thread each, connected by bounded queues."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from danqing.engine.core.spans import Span, Spans

T = TypeVar("T")

POLL_SECONDS = 0.1
"""Interval at which a waiting thread checks whether it must stop."""
END = object()
"""The last item of a queue."""


class StoppedError(Exception):
    """The `with` block of the `Overlap` has ended, so its threads must stop."""


class Failure(NamedTuple):
    """An exception of a producing thread, passed to the consuming thread."""

    error: BaseException


class Overlap:
    """Owns the threads of a chain of iterators. They stop when its `with` block ends.

    Args:
        spans: records how long each thread waits for input and for space in its queue, by the iterator's name.
        room: capacity of a queue, in items; with 0 there are no threads, and items are produced on demand.
        entered: makes the context in which each thread runs.

    >>> with Overlap(Spans()) as overlap:
    ...     list(overlap.prefetch(iter(range(3)), "count"))
    [0, 1, 2]
    """

    def __init__(
        self, spans: Spans, room: int = 1, entered: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self.spans, self.room, self._entered = spans, room, entered
        self._stopped = threading.Event()
        self._stream = threading.local()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Overlap:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def prefetch(self, stream: Iterator[T], name: str) -> Iterator[T]:
        """Runs an iterator in a new thread.

        Args:
            name: name of the span that records the thread's waits.

        Returns:
            An iterator over the same items, in order. It raises the exceptions of the thread.
        """
        if self.room == 0:
            return stream
        queue: Queue[Any] = Queue(self.room)
        span = self.spans.setdefault(name, Span())
        span.waiting = queue.qsize
        thread = threading.Thread(target=self._produce, args=(stream, queue, span), name=f"danqing {name}")
        self._threads.append(thread)
        thread.start()
        return self._consume(queue)

    def _produce(self, stream: Iterator[Any], queue: Queue[Any], span: Span) -> None:
        self._stream.span = span
        with suppress(StoppedError):
            try:
                with self._entered():
                    for item in stream:
                        self._put(queue, item)
            except StoppedError:
                raise
            except BaseException as error:
                self._put(queue, Failure(error))
            else:
                self._put(queue, END)

    def _put(self, queue: Queue[Any], item: Any) -> None:
        started = time.perf_counter()
        while not self._stopped.is_set():
            try:
                queue.put(item, timeout=POLL_SECONDS)
            except Full:
                continue
            self._stream.span.blocked_seconds += time.perf_counter() - started
            return
        raise StoppedError

    def _consume(self, queue: Queue[Any]) -> Iterator[Any]:
        while (item := self._get(queue)) is not END:
            if isinstance(item, Failure):
                raise item.error
            yield item

    def _get(self, queue: Queue[Any]) -> Any:
        started = time.perf_counter()
        while not self._stopped.is_set():
            try:
                item = queue.get(timeout=POLL_SECONDS)
            except Empty:
                continue
            if hasattr(self._stream, "span"):  # the thread that consumes the last queue has no span
                self._stream.span.starved_seconds += time.perf_counter() - started
            return item
        raise StoppedError
