"""Streams that run at the same time: each made by a thread of its own, a short queue ahead of whoever draws from it."""

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

GLANCE = 0.1
"""Seconds after which a waiting thread looks whether it should stop."""
END = object()


class StoppedError(Exception):
    """Nobody asks for the stream any more."""


class Problem(NamedTuple):
    """What went wrong in a thread, on its way to the next."""

    error: BaseException


class Overlap:
    """Threads that are gone when its `with` block ends, whether their streams have ended or not.

    Args:
        spans: told, by the streams' names, how long each waited for the one before and for the one behind.
        room: items that wait between two threads; with 0 there are no threads, and items are made when asked for.
        entered: makes what each thread works within.
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

    def ahead(self, stream: Iterator[T], name: str) -> Iterator[T]:
        """The same items in the same order. What goes wrong in the thread is raised where they are drawn."""
        if self.room == 0:
            return stream
        queue: Queue[Any] = Queue(self.room)
        span = self.spans.setdefault(name, Span())
        span.waiting = queue.qsize
        thread = threading.Thread(target=self._make, args=(stream, queue, span), name=f"danqing {name}")
        self._threads.append(thread)
        thread.start()
        return self._drawn(queue)

    def _make(self, stream: Iterator[Any], queue: Queue[Any], span: Span) -> None:
        self._stream.span = span
        with suppress(StoppedError):
            try:
                with self._entered():
                    for item in stream:
                        self._put(queue, item)
            except StoppedError:
                raise
            except BaseException as error:
                self._put(queue, Problem(error))
            else:
                self._put(queue, END)

    def _put(self, queue: Queue[Any], item: Any) -> None:
        started = time.perf_counter()
        while not self._stopped.is_set():
            try:
                queue.put(item, timeout=GLANCE)
            except Full:
                continue
            self._stream.span.blocked += time.perf_counter() - started
            return
        raise StoppedError

    def _drawn(self, queue: Queue[Any]) -> Iterator[Any]:
        while (item := self._get(queue)) is not END:
            if isinstance(item, Problem):
                raise item.error
            yield item

    def _get(self, queue: Queue[Any]) -> Any:
        started = time.perf_counter()
        while not self._stopped.is_set():
            try:
                item = queue.get(timeout=GLANCE)
            except Empty:
                continue
            if hasattr(self._stream, "span"):  # not where the last stream is drawn
                self._stream.span.starved += time.perf_counter() - started
            return item
        raise StoppedError
