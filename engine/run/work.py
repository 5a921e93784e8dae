"""The queue of shards that workers take from, and how many shards and pairs each worker has finished."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from danqing.engine.core.logs import event, log

T = TypeVar("T")

MAX_DEATHS = 3
"""Workers that die at a shard before it is given up, so that one bad shard does not end all workers."""


class Names(NamedTuple):
    """What the items of a queue are, and what is counted in them."""

    item: str
    unit: str


SHARDS = Names("shard", "pairs")


class WorkQueue(Generic[T]):
    """A queue of shards. A worker holds one at a time; the shard of a lost worker is the next one again.

    Args:
        items: the shards, in the order in which they are taken.

    Attributes:
        given_up: shards at which `MAX_DEATHS` workers died; they are not taken again.

    >>> queue = WorkQueue(["a", "b"])
    >>> queue.take("worker 0"), queue.take("worker 1"), queue.take("worker 2")
    ('a', 'b', None)
    >>> queue.lose("worker 1")
    'b'
    >>> queue.take("worker 2")
    'b'
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._waiting = deque(items)
        self._held: dict[str, T] = {}
        self._deaths = Counter[T]()
        self.given_up: list[T] = []

    def take(self, worker: str) -> T | None:
        """Gives a worker the next shard; returns None if no shard is waiting."""
        if not self._waiting:
            return None
        self._held[worker] = item = self._waiting.popleft()
        return item

    def finish(self, worker: str) -> None:
        """Removes the shard that a worker has finished."""
        del self._held[worker]

    def lose(self, worker: str) -> T | None:
        """Puts the shard of a lost worker back, or gives it up; returns it, None if the worker held none."""
        item = self._held.pop(worker, None)
        if item is not None:
            self._deaths[item] += 1
            if self._deaths[item] == MAX_DEATHS:
                self.given_up.append(item)
            else:
                self._waiting.appendleft(item)
        return item

    @property
    def waiting(self) -> int:
        """Number of shards that wait for a worker."""
        return len(self._waiting)

    @property
    def unfinished(self) -> int:
        """Number of shards that wait or that a worker holds."""
        return len(self._waiting) + len(self._held)


@dataclass
class WorkerTotals:
    """What one worker has done.

    Attributes:
        shards: number of shards that it took; a lost one does not count.
        pairs: number of pairs that it finished.
        seconds: time from the first to the last call of `Tally.add`.
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
        workers: name → totals.
        lost: number of workers that died.
    """

    workers: dict[str, WorkerTotals] = field(default_factory=dict)
    lost: int = 0
    _started: dict[str, float] = field(default_factory=dict)

    def add(self, worker: str, shards: int = 0, pairs: int = 0) -> None:
        """Adds shards that a worker took and pairs that it finished; its time starts with the first call."""
        totals = self.workers.setdefault(worker, WorkerTotals())
        totals.shards += shards
        totals.pairs += pairs
        now = time.monotonic()
        totals.seconds = now - self._started.setdefault(worker, now)

    def write_log(self, names: Names = SHARDS) -> None:
        """Logs a line per worker."""
        items, unit = f"{names.item}s", names.unit
        for worker, totals in self.workers.items():
            counts = {items: totals.shards, unit: totals.pairs, f"{unit}_per_second": round(totals.rate, 1)}
            line = f"{totals.shards} {items}, {totals.pairs} {unit}, {totals.rate:.1f} {unit}/s"
            log.info("worker %s: %s", worker, line, extra=event("worker.ended", worker=worker, **counts))
