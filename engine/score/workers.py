"""Runs SCORE on one device in this process, or on several devices of a host with one worker process each."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from danqing.engine.core.columns import SHARD_COLUMNS
from danqing.engine.core.device import available_threads, open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import file_error
from danqing.engine.core.logs import log_worker_record, records_to
from danqing.engine.core.progress import Progress
from danqing.engine.core.spans import Spans
from danqing.engine.core.storage import UploadCheck, upload_checks
from danqing.engine.recipe.plan import Plan, make_plan
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.run.work import Tally
from danqing.engine.score.loop import score
from danqing.engine.score.metrics import serve_metrics
from danqing.engine.sources import Shard
from danqing.engine.stages import Context
from danqing.engine.stages.patterns import stages_for
from danqing.trt_models.model_set import ModelSet

POLL_SECONDS = 0.2
SHUTDOWN_GRACE_SECONDS = 5.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
"""Linux's number of the setting, see prctl(2)."""

Watcher = Callable[[Run, Plan, Context], AbstractContextManager[Spans]]
"""Makes the context in which a run is scored. It yields the spans to record in (`profiling.watch.profile_scoring`)."""


@contextmanager
def scoring(
    run: Run, settings: Settings, progress: Progress, watcher: Watcher | None = None
) -> Iterator[Callable[[Iterator[Shard] | None], Spans]]:
    """Opens `settings.device`, the models and the metrics, during a `with` block.

    Args:
        run, settings, progress, watcher: see `score_on_one`.

    Yields:
        A function that scores shards (see `score`); it returns the counts and times of all its calls.
    """
    recipe = run.recipe
    plan = make_plan(recipe, stages_for(recipe), SHARD_COLUMNS)
    with open_device(settings.device, settings.threads) as device:
        models = ModelSet(recipe.models, strict=settings.strict_engines)
        context = settings.context(device, models, plan.wanted)
        profiled = watcher(run, plan, context) if watcher else nullcontext(Spans())
        with profiled as spans, serve_metrics(spans, settings.metrics_port, settings.metrics_address, device, models):
            gated = not settings.score_everything
            yield lambda shards: score(run, plan, context, progress, gated, spans=spans, shards=shards)


def score_on_one(
    run: Run,
    settings: Settings,
    progress: Progress,
    shards: Iterator[Shard] | None = None,
    watcher: Watcher | None = None,
) -> Spans:
    """Runs SCORE on `settings.device`, in this process.

    Args:
        run: the run folder.
        settings: the device, threads, and limits.
        progress: see `score`.
        shards: see `score`.
        watcher: profiles the scoring; None: no profile.

    Returns:
        The counts and times of the stages.
    """
    with scoring(run, settings, progress, watcher) as score_shards:
        return score_shards(shards)


def score_on_several(run: Run, settings: Settings, progress: Progress, shards: Iterable[Shard]) -> Spans:
    """Runs SCORE on `settings.devices`, with one worker process for each.

    A worker takes the next shard when it has read its last one. It gets an equal share of the cores and of the memory
    limit; worker i serves metrics at `settings.metrics_port` + i. This process writes the log.

    Args:
        run: the run folder.
        settings: the devices, one per worker, and the limits of all workers together.
        progress: receives the rows of all workers.
        shards: the shards to score.

    Returns:
        The counts and times of the stages, summed over all workers.

    Raises:
        DanqingError: a worker failed; has the worker's message. The other workers are stopped.
    """
    context = get_context("spawn")
    threads = settings.threads or max(available_threads() // len(settings.devices), 1)
    memory = settings.memory_limit and settings.memory_limit // len(settings.devices)
    workers: list[_Worker] = []
    for number, device in enumerate(settings.devices):
        port = None if settings.metrics_port is None else settings.metrics_port + number
        own = replace(settings, device=device, devices=(), threads=threads, memory_limit=memory, metrics_port=port)
        connection, child_connection = context.Pipe()
        process = context.Process(
            target=_run_worker,
            args=(run.folder, own, tuple(upload_checks), child_connection),
            name=f"danqing {device}",
        )
        workers.append(_Worker(f"{number} on {device}", process, connection, child_connection))
    total, waiting, tally = Spans(), iter(shards), Tally()
    with _running(workers):
        for worker, kind, content in _messages(workers):
            if kind == "take":
                shard = next(waiting, None)
                tally.add(worker.name, shards=shard is not None)
                with suppress(OSError):  # the worker was killed, which the next message says
                    worker.connection.send(shard)
            elif kind == "log":
                log_worker_record(worker.name, *content)
            elif kind == "done":
                total.add(content[0])
                note_refused(run, content[1])
            elif kind == "failed":
                raise DanqingError(content[0])
            else:
                getattr(progress, kind)(*content)
                if kind == "advance":
                    tally.add(worker.name, pairs=content[0])
    tally.write_log()
    return total


def note_refused(run: Run, refused: Mapping[str, str] | None) -> None:
    """Adds engines that a worker could not open to the manifest, which is not written yet."""
    if refused:
        run.manifest.setdefault("refused_engines", {}).update(refused)


class _Worker(NamedTuple):
    """A worker process, and both ends of the pipe between it and this process.

    Each has a pipe of its own, so that a worker that is killed while it sends does not block the others.
    """

    name: str
    process: Any
    connection: Connection
    child_connection: Connection

    def check(self) -> None:
        """Raises DanqingError if the process has ended with an error; waits for its end."""
        self.process.join()
        code = self.process.exitcode
        if code == 0:
            return
        ending = f"ended with exit status {code}; see run.log"
        if code < 0:
            ending = f"was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                ending += ", as the kernel does if memory is short: lower --memory-limit or --workers-per-gpu"
        raise DanqingError(f"the worker {self.process.name} (process {self.process.pid}) {ending}")


@contextmanager
def _running(workers: Sequence[_Worker]) -> Iterator[None]:
    """Starts the processes; at the end of the `with` block interrupts those that still run, and waits for all."""
    try:
        for worker in workers:
            with _signals_blocked():  # until the worker handles them
                worker.process.start()
            worker.child_connection.close()  # so that the pipe ends with the worker
        yield
    finally:
        started = [worker for worker in workers if worker.process.pid is not None]
        stopped = time.monotonic()
        for worker in started:
            if worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGINT)
        receivers = {worker.connection for worker in started}
        while any(worker.process.is_alive() for worker in started):
            for ready in wait(
                [*receivers, *(w.process.sentinel for w in started if w.process.is_alive())], POLL_SECONDS
            ):
                if isinstance(ready, Connection):  # a worker cannot stop while it waits for space in its pipe
                    with suppress(EOFError, OSError):
                        ready.recv_bytes()
                        continue
                    receivers.discard(ready)
            if time.monotonic() - stopped > SHUTDOWN_GRACE_SECONDS:
                for worker in started:
                    worker.process.kill()


def _messages(workers: Sequence[_Worker]) -> Iterator[tuple[_Worker, str, list[Any]]]:
    """Yields the messages of all workers until all have ended.

    Raises:
        DanqingError: a worker ended with an error.
    """
    of = {worker.connection: worker for worker in workers}
    while of:
        for receiver in wait(list(of)):
            assert isinstance(receiver, Connection)
            try:
                kind, *content = receiver.recv()
            except (EOFError, OSError):  # OSError: it was killed in the middle of a message
                of.pop(receiver).check()
            else:
                yield of[receiver], kind, content


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks the signals that end a run, in this thread and in processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Parent:
    """A worker's connection to its parent: sends progress and log records from any thread, and receives shards."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def expect(self, rows: int, size: int) -> None:
        self.send("expect", rows, size)

    def advance(self, rows: int) -> None:
        self.send("advance", rows)

    def say(self, line: str) -> None:
        self.send("say", line)

    def log(self, level: int, text: str, extra: Mapping[str, Any]) -> None:
        self.send("log", level, text, extra)

    def shards(self) -> Iterator[Shard]:
        """Asks the parent for a shard whenever one is needed."""
        while True:
            self.send("take")
            shard = self._connection.recv()
            if shard is None:
                return
            yield shard

    def send(self, *message: Any) -> None:
        with self._lock:
            self._connection.send(message)


def _stop_once(number: int, frame: Any) -> None:
    """Handles the first signal: the terminal and the parent both send one, and the second would break the shutdown."""
    for stop in STOP_SIGNALS:
        signal.signal(stop, signal.SIG_IGN)
    raise KeyboardInterrupt


def end_with_parent() -> None:
    """Makes this process end with its parent, even a killed one, so that no worker writes to an unlocked run.

    On Linux the kernel ends it; elsewhere a thread waits for the parent's end.
    """
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=follow, daemon=True).start()  # also if the parent ended before `prctl`


def _run_worker(folder: Path, settings: Settings, checks: Sequence[UploadCheck], connection: Connection) -> None:
    """The main function of a worker process."""
    end_with_parent()
    for stop in STOP_SIGNALS:
        signal.signal(stop, _stop_once)
    parent = _Parent(connection)
    upload_checks.extend(checks)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        run = Run.open(folder)
        with records_to(parent.log):  # stderr is the parent's, so the log has what native libraries write
            spans = score_on_one(run, settings, parent, parent.shards())
        parent.send("done", spans.sums(), run.manifest.get("refused_engines"))
    except DanqingError as problem:
        parent.send("failed", f"{settings.device}: {problem}")
    except OSError as problem:
        if problem.filename is None:
            raise
        parent.send("failed", f"{settings.device}: {file_error(problem)}")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
