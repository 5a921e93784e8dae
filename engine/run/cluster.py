"""Runs shards on the workers of a Ray cluster. The driver, which the user started, holds the queue of shards.

Only names and counts pass through Ray: each worker reads its shards from storage and writes its files to storage. A
worker has one shard at a time, and Ray does not restart it. If a worker or its node dies, the driver puts the shard
back into the queue and starts another worker if a node has room for it. Nodes that join later also get workers.
"""

from __future__ import annotations

import logging
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import file_error
from danqing.engine.core.logs import event, log
from danqing.engine.core.progress import Progress
from danqing.engine.run.work import MAX_DEATHS, Tally, WorkQueue

T = TypeVar("T")

POLL_SECONDS = 1.0
"""Maximum time between two checks for nodes that joined the cluster."""
WAIT_NOTICE_SECONDS = 30.0
"""Time without a worker after which a line says what the cluster lacks."""
PATIENCE_SECONDS = 10.0
"""Time without a live node after which a cluster of this machine has ended; no other node can join it."""
CONNECT_SECONDS = 5.0
"""Time limit of the connection that tells whether a cluster listens; Ray itself tries for more than 20 s."""
LOCAL = "local"
"""The address of a cluster that `connected` starts on this machine."""
MAX_REASON_CHARACTERS = 300
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NOT_INSTALLED = "--ray needs Ray on every node: pip install 'danqing-engine[ray]'"


class Worker(Protocol):
    """A Ray actor on a node of the cluster."""

    def open(self) -> str:
        """Loads what all shards need; returns the host and the device."""

    def work(self, item: Any) -> Any:
        """Processes a shard; returns names and counts."""


@dataclass(frozen=True)
class WorkerSpec:
    """Class, arguments and resources of the workers.

    Attributes:
        kind: the class of the workers.
        arguments: arguments of the class. They are pickled for every worker, so they must be small.
        resources: `CPU`, `GPU` → number that a worker needs; two workers with 0.5 share a GPU.
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
        address: `local` starts a cluster on this machine, `auto` finds the one that this machine is a node of; else
            HOST:PORT. Empty: no cluster.

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
    _check_listening(address)
    in_main_thread = threading.current_thread() is threading.main_thread()
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        dashboard = False if address == LOCAL else None
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
    except (ConnectionError, ValueError, RuntimeError) as problem:
        reason = str(problem).partition("\n")[0]
        raise DanqingError(f"--ray {address}: no cluster: {reason}; start one, or use --ray local") from None
    if in_main_thread:
        signal.signal(signal.SIGTERM, terminated)  # Ray's own handler exits without the engine's last line
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Raises DanqingError if nothing listens at HOST:PORT."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise DanqingError(
            f"--ray {address}: no cluster: nothing answers at this address ({reason}); check it with `ray status "
            f"--address {address}`, start a cluster with `ray start --head`, or use --ray local"
        ) from None


@dataclass
class _Driver(Generic[T]):
    """The state of `run_on_cluster`.

    Attributes:
        running: pending result → its worker and its shard; the shard is None while the worker opens.
        names: worker → its name, once it is open.
        idle: open workers without a shard.
    """

    ray: Any
    spec: WorkerSpec
    queue: WorkQueue[T]
    tally: Tally
    finished: Callable[[str, T, Any], None]
    progress: Progress
    running: dict[Any, tuple[Any, T | None]] = field(default_factory=dict)
    names: dict[Any, str] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)
    opened: int = 0
    failed_starts: int = 0

    def start_workers(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        """Starts as many workers as fit on the nodes, as listed by `ray.nodes`, at most one a shard.

        Starts one even if none fits: a pending worker makes an autoscaler add a node.
        """
        existing = len(self.idle) + len(self.running)
        wanted = min(max(self.spec.fitting(nodes), 1), self.queue.unfinished)
        needs = {f"num_{name.lower()}s": need for name, need in self.spec.resources.items()}
        for _ in range(wanted - existing):
            kind = self.ray.remote(self.spec.kind).options(max_restarts=0, max_task_retries=0, **needs)
            worker = kind.remote(*self.spec.arguments)
            self.running[worker.open.remote()] = worker, None

    def hand_out(self) -> None:
        """Gives waiting shards to idle workers."""
        while self.idle and self.queue.waiting:
            worker = self.idle.pop()
            item = self.queue.take(self.names[worker])
            self.running[worker.work.remote(item)] = worker, item

    def receive(self, result: Any) -> None:
        """Handles a result: a worker is open, has finished a shard, or is lost.

        Raises:
            DanqingError: a worker raised it, or `MAX_DEATHS` workers in a row died before they were open.
        """
        worker, item = self.running.pop(result)
        try:
            made = self.ray.get(result)
        except self.ray.exceptions.RayTaskError as problem:
            cause = problem.cause
            if isinstance(cause, OSError) and cause.filename is not None:
                cause = DanqingError(file_error(cause))
            if isinstance(cause, DanqingError):
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
            self.queue.finish(self.names[worker])
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
        item = self.queue.lose(name)
        fate = "its shard waits again" if item is not None else "it had no shard"
        if item in self.queue.given_up:
            fate = f"its shard is given up, at which {MAX_DEATHS} workers died"
        line = f"worker {name} is lost, {fate}: {reason}"
        log.warning("%s", line, extra=event("worker.lost", worker=name, reason=reason))
        self.progress.say(line)


@dataclass
class _Watch:
    """How long the cluster has had no live node, and the driver no open worker.

    Attributes:
        address: see `connected`.
        needs: resources of a worker, for the line that says what the cluster lacks.
        node_seen, worker_seen: the last time that there was one, as `time.monotonic`.
        told: the line was shown since there was a worker.
    """

    address: str
    needs: str
    progress: Progress
    node_seen: float = field(default_factory=time.monotonic)
    worker_seen: float = field(default_factory=time.monotonic)
    told: bool = False

    def check(self, nodes: Sequence[Mapping[str, Any]], has_worker: bool) -> None:
        """Shows a line after `WAIT_NOTICE_SECONDS` without a worker.

        Raises:
            DanqingError: a cluster of this machine has had no live node for `PATIENCE_SECONDS`.
        """
        now = time.monotonic()
        alive = any(node["Alive"] for node in nodes)
        if alive:
            self.node_seen = now
        elif self.address == LOCAL and now - self.node_seen > PATIENCE_SECONDS:
            raise DanqingError(
                f"--ray {LOCAL}: the cluster on this machine has ended: one of its processes was killed, for example "
                "because memory was short; run the same command again"
            )
        if has_worker:
            self.worker_seen, self.told = now, False
        elif not self.told and now - self.worker_seen > WAIT_NOTICE_SECONDS:
            lack = f"a node with {self.needs} for a worker" if alive else "a node, no node of the cluster is alive"
            self.progress.say(f"--ray {self.address}: waits for {lack}; see `ray status`")
            self.told = True


def _reason(problem: Exception) -> str:
    """Returns the last line of Ray's message, which has the cause of a worker's end."""
    lines = [line.strip() for line in _COLOUR.sub("", str(problem)).splitlines() if line.strip()]
    return lines[-1][:MAX_REASON_CHARACTERS] if lines else type(problem).__name__


def run_on_cluster(
    ray: Any,
    spec: WorkerSpec,
    queue: WorkQueue[T],
    tally: Tally,
    finished: Callable[[str, T, Any], None],
    progress: Progress,
    address: str = "auto",
) -> None:
    """Processes all shards of a queue on the workers of a cluster, except those at which `MAX_DEATHS` workers die.

    Args:
        ray: the module, from `connected`.
        spec: class, arguments and resources of the workers.
        queue: the shards; on return, `given_up` has those that are not done.
        tally: receives the names and the number of losses of the workers.
        finished: called with the worker's name, the shard and the result of `Worker.work`.
        progress: shows the losses.
        address: of the cluster, see `connected`.

    Raises:
        DanqingError: a worker raised it, workers die at their start, or a cluster of this machine has ended.
    """
    driver = _Driver(ray, spec, queue, tally, finished, progress)
    watch = _Watch(address, ", ".join(f"{need:g} {name}" for name, need in spec.resources.items()), progress)
    try:
        while queue.unfinished:
            nodes = ray.nodes()
            watch.check(nodes, bool(driver.names))
            driver.start_workers(nodes)
            driver.hand_out()
            ready, _ = ray.wait(list(driver.running), timeout=POLL_SECONDS)
            for result in ready:
                driver.receive(result)
    finally:
        for worker in {*driver.names, *(worker for worker, _ in driver.running.values())}:
            ray.kill(worker)
