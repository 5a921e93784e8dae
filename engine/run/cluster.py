"""Ray: the workers of a cluster take shards from a queue in the process that was started, the driver.

Only names and counts pass through Ray: a worker reads its shards from the storage and writes its files to it. A worker
has one shard at a time and is never restarted by Ray. If it dies, alone or with its node, the driver hands its shard to
another one and starts a new worker where there is room; nodes that join the cluster get workers, too.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.logs import event, log
from danqing.engine.core.progress import Progress
from danqing.engine.run.work import MAX_DEATHS, Tally, WorkQueue

T = TypeVar("T")

POLL_SECONDS = 1.0
"""Time between two looks at the nodes of the cluster."""
PATIENCE_SECONDS = 30.0
"""Time without any worker after which the user is told what the cluster lacks."""
MAX_REASON = 300
"""Characters of a reason that are shown."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NOT_INSTALLED = "--ray needs Ray on every node: pip install 'danqing-engine[ray]'"


class Worker(Protocol):
    """A worker, made by Ray on a node of the cluster."""

    def open(self) -> str:
        """Loads what all shards need. Returns where it runs: the host, and its device."""

    def work(self, item: Any) -> Any:
        """Does a shard; returns names and counts."""


@dataclass(frozen=True)
class Workers:
    """How the workers are made.

    Attributes:
        kind: their class.
        arguments: of the class; pickled for every worker, so without data.
        resources: what a worker needs of its node: `CPU`, `GPU` → number; two workers with 0.5 share a GPU.
    """

    kind: type[Worker]
    arguments: tuple[Any, ...]
    resources: Mapping[str, float]

    def fitting(self, nodes: Sequence[Mapping[str, Any]]) -> int:
        """Returns how many workers the nodes have room for, as listed by `ray.nodes`."""
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        return sum(min(int(node.get(name, 0) / need + 1e-6) for name, need in self.resources.items()) for node in alive)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connects this process to a Ray cluster during a `with` block, unless it is connected already.

    Args:
        address: `local` starts a cluster of this machine, `auto` finds the one that this machine is a node of; else
            HOST:PORT. Empty: the block runs without a cluster.

    Yields:
        The module `ray`; None without a cluster.

    Raises:
        DanqingError: Ray is not installed, or there is no cluster.
    """
    if not address:
        yield None
        return
    try:
        import ray
    except ImportError:
        raise DanqingError(NOT_INSTALLED) from None
    if ray.is_initialized():
        yield ray
        return
    in_main_thread = threading.current_thread() is threading.main_thread()
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        dashboard = False if address == "local" else None
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
    except (ConnectionError, ValueError, RuntimeError) as problem:
        reason = str(problem).splitlines()[0]
        raise DanqingError(f"--ray {address}: no cluster: {reason}; start one, or use --ray local") from None
    if in_main_thread:
        signal.signal(signal.SIGTERM, terminated)  # Ray's own handler exits without the engine's last line
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass
class _Driver(Generic[T]):
    """The state of `run_on_cluster`.

    Attributes:
        running: result to come → the worker that makes it, and its shard; None while the worker opens.
        names: worker → its name, once it is open.
        idle: open workers without a shard.
    """

    ray: Any
    workers: Workers
    queue: WorkQueue[T]
    tally: Tally
    finished: Callable[[str, T, Any], None]
    progress: Progress
    running: dict[Any, tuple[Any, T | None]] = field(default_factory=dict)
    names: dict[Any, str] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)
    opened: int = 0
    failed_starts: int = 0

    def start_workers(self) -> None:
        """Starts a worker wherever there is room, if shards wait; always one, which asks an autoscaler for a node."""
        there = len(self.idle) + len(self.running)
        wanted = min(max(self.workers.fitting(self.ray.nodes()), 1), self.queue.unfinished)
        needs = {f"num_{name.lower()}s": need for name, need in self.workers.resources.items()}
        for _ in range(wanted - there):
            kind = self.ray.remote(self.workers.kind).options(max_restarts=0, max_task_retries=0, **needs)
            worker = kind.remote(*self.workers.arguments)
            self.running[worker.open.remote()] = worker, None

    def hand_out(self) -> None:
        """Gives every idle worker a shard, while shards wait."""
        while self.idle and self.queue.waiting:
            worker = self.idle.pop()
            item = self.queue.take(self.names[worker])
            self.running[worker.work.remote(item)] = worker, item

    def receive(self, result: Any) -> None:
        """Takes a result, or the news that the worker which should make it is lost.

        Raises:
            DanqingError: a worker failed, or several in a row died before they were open.
        """
        worker, item = self.running.pop(result)
        try:
            made = self.ray.get(result)
        except self.ray.exceptions.RayTaskError as problem:
            if isinstance(cause := problem.cause, DanqingError):
                raise DanqingError(f"worker {self.names.get(worker, 'at its start')}: {cause}") from None
            raise
        except self.ray.exceptions.RayError as problem:
            self.lose(worker, _reason(problem))
            return
        if worker not in self.names:
            self.names[worker], self.failed_starts = f"{self.opened} on {made}", 0
            self.opened += 1
            self.tally.add(self.names[worker])
            log.info("worker %s is ready", self.names[worker], extra=event("worker.ready", worker=self.names[worker]))
        else:
            assert item is not None
            self.queue.finish(self.names[worker], item)
            self.finished(self.names[worker], item, made)
        self.idle.append(worker)

    def lose(self, worker: Any, reason: str) -> None:
        """Puts the shard of a lost worker back into the queue."""
        self.tally.lost += 1
        name = self.names.pop(worker, None)
        if name is None:
            self.failed_starts += 1
            if self.failed_starts == MAX_DEATHS:
                raise DanqingError(
                    f"{MAX_DEATHS} workers in a row died while they started: {reason}; every node needs the same "
                    "danqing-engine as this process"
                )
            return
        given_up = len(self.queue.given_up)
        again = self.queue.lose(name)
        fate = f"{len(again)} shard waits again" if again else "no shard waits again"
        if len(self.queue.given_up) > given_up:
            fate = f"its shard is given up, at which {MAX_DEATHS} workers died"
        line = f"worker {name} is lost, {fate}: {reason}"
        log.warning("%s", line, extra=event("worker.lost", worker=name, reason=reason))
        self.progress.say(line)


def _reason(problem: Exception) -> str:
    """The last line of Ray's text, which says why a worker or its start has ended; the first ones say that it has."""
    lines = [line.strip() for line in _COLOUR.sub("", str(problem)).splitlines() if line.strip()]
    return lines[-1][:MAX_REASON] if lines else type(problem).__name__


def run_on_cluster(
    ray: Any,
    workers: Workers,
    queue: WorkQueue[T],
    tally: Tally,
    finished: Callable[[str, T, Any], None],
    progress: Progress,
) -> None:
    """Has the workers of a cluster do all shards of a queue but those at which `MAX_DEATHS` workers die.

    Args:
        ray: see `connected`.
        workers: how they are made.
        queue: the shards; afterwards `given_up` has those that are not done.
        tally: receives the workers' names and losses.
        finished: called with the worker's name, the shard and what `Worker.work` has returned.
        progress: is told of losses.

    Raises:
        DanqingError: a worker failed with one, or workers die at their start.
    """
    driver = _Driver(ray, workers, queue, tally, finished, progress)
    waits_since: float | None = time.monotonic()
    try:
        while queue.unfinished:
            driver.start_workers()
            driver.hand_out()
            ready, _ = ray.wait(list(driver.running), timeout=POLL_SECONDS)
            for result in ready:
                driver.receive(result)
            if driver.names:
                waits_since = None
            elif waits_since is not None and time.monotonic() - waits_since > PATIENCE_SECONDS:
                needs = ", ".join(f"{need:g} {name}" for name, need in workers.resources.items())
                progress.say(f"--ray: waits for a node with {needs} for a worker; see `ray status`")
                waits_since = None
    finally:
        for worker in {*driver.names, *(worker for worker, _ in driver.running.values())}:
            ray.kill(worker)
