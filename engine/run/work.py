"""Work that is divided among workers: which of them has which shard, and how fast each of them is."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from danqing.engine.core.logs import event, log

T = TypeVar("T")

MAX_DEATHS = 3
"""Workers that may die at a shard. One that ends its worker every time must not end all of them."""


class WorkQueue(Generic[T]):
    """Hands shards out to workers, each of them once, and takes back what a lost worker held.

    Args:
        items: the shards, in the order in which they are handed out.

    Attributes:
        given_up: shards at which `MAX_DEATHS` workers died; they are handed out no more.

    >>> queue = WorkQueue(["a", "b"])
    >>> queue.take("worker 0"), queue.take("worker 1"), queue.take("worker 2")
    ('a', 'b', None)
    >>> queue.lose("worker 1")
    ['b']
    >>> queue.take("worker 2")
    'b'
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._waiting = deque(items)
        self._held: dict[str, list[T]] = {}
        self._deaths = Counter[T]()
        self.given_up: list[T] = []

    def take(self, worker: str) -> T | None:
        """Hands the next shard out; None if no shard is waiting."""
        if not self._waiting:
            return None
        item = self._waiting.popleft()
        self._held.setdefault(worker, []).append(item)
        return item

    def finish(self, worker: str, item: T) -> None:
        """Notes that a worker has finished a shard."""
        self._held[worker].remove(item)

    def lose(self, worker: str) -> list[T]:
        """Notes that a worker is lost; returns the shards that wait again, as the next ones, since it held them."""
        again: list[T] = []
        for item in self._held.pop(worker, []):
            self._deaths[item] += 1
            (self.given_up if self._deaths[item] == MAX_DEATHS else again).append(item)
        self._waiting.extendleft(reversed(again))
        return again

    @property
    def waiting(self) -> int:
        """Number of shards that no worker has."""
        return len(self._waiting)

    @property
    def unfinished(self) -> int:
        """Number of shards that wait or that a worker has."""
        return len(self._waiting) + sum(map(len, self._held.values()))


@dataclass
class Work:
    """What one worker has done.

    Attributes:
        shards: taken, and not lost.
        pairs: finished.
        seconds: between its first shard's start and its last report.
    """

    shards: int = 0
    pairs: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Pairs per second."""
        return self.pairs / self.seconds if self.seconds else 0.0


@dataclass
class Tally:
    """What each worker of a phase has done, by name.

    Attributes:
        workers: name → work.
        lost: workers that died.
    """

    workers: dict[str, Work] = field(default_factory=dict)
    lost: int = 0
    _started: dict[str, float] = field(default_factory=dict)

    def add(self, worker: str, shards: int = 0, pairs: int = 0) -> None:
        """Adds to what a worker has taken and finished; its time starts with the first call."""
        work = self.workers.setdefault(worker, Work())
        started = self._started.setdefault(worker, time.monotonic())
        work.shards, work.pairs, work.seconds = work.shards + shards, work.pairs + pairs, time.monotonic() - started

    def write_log(self) -> None:
        """Logs a line per worker."""
        for worker, work in self.workers.items():
            shards, pairs, rate = work.shards, work.pairs, work.rate
            figures = event("worker.ended", worker=worker, shards=shards, pairs=pairs, pairs_per_second=round(rate, 1))
            log.info("worker %s: %d shards, %d pairs, %.1f pairs/s", worker, shards, pairs, rate, extra=figures)
