"""Runs a job, the shards or tasks of a phase, on the workers of a Ray cluster.

The driver, which the user started, holds the queue of shards. Only names and counts pass through Ray: each worker reads
its shards from storage and writes its files to storage. A worker has one shard at a time, and Ray does not restart it.
If a worker or its node dies, the driver puts the shard back into the queue and starts another worker if a node has room
for it. Nodes that join later also get workers.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from danqing.engine.core.device import kind_of
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import file_error
from danqing.engine.core.logs import event, log, log_worker_record, records_to
from danqing.engine.core.progress import Progress
from danqing.engine.core.storage import UploadCheck, forget, upload_checks
from danqing.engine.run.versions import SCORING_VERSIONS, current_versions, version_changes
from danqing.engine.run.work import MAX_DEATHS, SHARDS, Names, Tally, WorkQueue

T = TypeVar("T")
Records = list[tuple[int, str, Mapping[str, Any]]]
"""Log records (`records_to`)."""

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


class Worker(ABC):
    """A Ray actor on a node of the cluster. Ray calls `start` and `do`; a phase implements `open` and `work`."""

    @abstractmethod
    def open(self) -> str:
        """Loads what all shards need; returns the host and the device."""

    @abstractmethod
    def work(self, item: Any) -> Any:
        """Processes a shard; returns names and counts."""

    def start(self, working_folder: Path, versions: Mapping[str, str], checks: Sequence[UploadCheck]) -> str:
        """Opens the worker.

        Args:
            working_folder: the driver's, to which paths in settings and recipe can be relative.
            versions: the driver's.
            checks: the driver's `upload_checks`.

        Raises:
            DanqingError: this node has other versions that can change results.
        """
        check_versions(versions)
        upload_checks.extend(checks)
        with suppress(OSError):  # this node does not have the folder
            os.chdir(working_folder)
        self._records: Records = []
        self._logging = ExitStack()  # until the actor ends
        self._logging.enter_context(records_to(lambda *record: self._records.append(record)))
        return self.open()

    def do(self, item: Any) -> tuple[Any, Records]:
        """Processes a shard; returns the result of `work` and the log records since the last shard."""
        result = self.work(item)
        forget()  # what is known of the shard's objects, 2 KB a shard
        records = self._records.copy()
        self._records.clear()
        return result, records


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


@dataclass(frozen=True)
class Job(Generic[T]):
    """What a phase does on a cluster.

    Attributes:
        address: of the cluster, see `connected`.
        spec: class, arguments and resources of the workers.
        items: the shards, hashable.
        finished: called with a shard and the result of `Worker.work`; returns the number of its pairs.
        given_up: what is missing if shards are given up: returns the end of the error from these shards.
        names: what an item is, and what is counted in it (`finished`), for the messages.
    """

    address: str
    spec: WorkerSpec
    items: Iterable[T]
    finished: Callable[[T, Any], int]
    given_up: Callable[[list[T]], str]
    names: Names = SHARDS


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
    job: Job[T]
    queue: WorkQueue[T]
    tally: Tally
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
        spec = self.job.spec
        wanted = min(max(spec.fitting(nodes), 1), self.queue.unfinished)
        needs = {f"num_{name.lower()}s": need for name, need in spec.resources.items()}
        for _ in range(wanted - existing):
            kind = self.ray.remote(spec.kind).options(max_restarts=0, max_task_retries=0, **needs)
            worker = kind.remote(*spec.arguments)
            self.running[worker.start.remote(Path.cwd(), current_versions(), tuple(upload_checks))] = worker, None

    def hand_out(self) -> None:
        """Gives waiting shards to idle workers."""
        while self.idle and self.queue.waiting:
            worker = self.idle.pop()
            item = self.queue.take(self.names[worker])
            self.running[worker.do.remote(item)] = worker, item

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
            result, records = made
            name = self.names[worker]
            self.queue.finish(name)
            for level, text, extra in records:  # they come with the shard: too late to be shown
                log_worker_record(name, level, text, {**extra, "is_said": False})
            self.tally.add(name, shards=1, pairs=self.job.finished(item, result))
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
        kind = self.job.names.item
        fate = f"its {kind} waits again" if item is not None else f"it had no {kind}"
        if item in self.queue.given_up:
            fate = f"its {kind} is given up, at which {MAX_DEATHS} workers died"
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


def run_on_cluster(ray: Any, job: Job[T], progress: Progress, tally: Tally | None = None) -> None:
    """Runs a job on the workers of a cluster, and logs what each worker did.

    Args:
        ray: the module, from `connected`.
        job: what to do.
        progress: shows the losses.
        tally: receives the names, the counts and the number of losses of the workers.

    Raises:
        DanqingError: a worker raised it, workers die at their start, a cluster of this machine has ended, or shards
            were given up, at which `MAX_DEATHS` workers died; all others are done then.
    """
    queue, tally = WorkQueue(job.items), tally or Tally()
    driver = _Driver(ray, job, queue, tally, progress)
    watch = _Watch(job.address, ", ".join(f"{need:g} {name}" for name, need in job.spec.resources.items()), progress)
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
    tally.write_log(job.names)
    if queue.given_up:
        raise DanqingError(f"{MAX_DEATHS} workers died at each of these {job.given_up(queue.given_up)}")


def resources_of(
    device: str, threads: int | None, workers_per_gpu: int, nodes: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Returns the resources of a worker: a GPU or a share of one, and cores.

    Args:
        device: of the workers.
        threads: the number of cores. Without it, the workers of a node with GPUs share its cores equally, and a worker
            without a GPU has one.
        workers_per_gpu: number of workers that share a GPU.
        nodes: as listed by `ray.nodes`.
    """
    if kind_of(device) == "cpu":
        return {"CPU": threads or 1}
    found = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("GPU")]
    share = min((node.get("CPU", 0) // (node["GPU"] * workers_per_gpu) for node in found), default=1)
    return {"GPU": 1 / workers_per_gpu, "CPU": threads or max(int(share), 1)}


def device_name(device: str) -> str:
    """Names the host and the device of a worker."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpu = visible if kind_of(device) == "cuda" else None
    return f"{socket.gethostname()}, {f'cuda:{gpu}' if gpu else device}"


def check_versions(wanted: Mapping[str, str]) -> None:
    """Raises DanqingError if this node has other versions than the driver that can change scores."""
    changed = version_changes(wanted, current_versions())
    decisive = [
        f"{name} {new or 'none'}, not {old}" for name, (old, new) in changed.items() if name in SCORING_VERSIONS
    ]
    if decisive:
        raise DanqingError(f"{socket.gethostname()} has other versions than the driver: {'; '.join(decisive)}")
