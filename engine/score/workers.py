"""Runs SCORE on one device in this process, or on several devices of a host with one worker process each."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from danqing.engine.core.columns import SHARD_COLUMNS
from danqing.engine.core.device import available_threads, open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import Progress
from danqing.engine.core.spans import Span, Spans
from danqing.engine.recipe.plan import Plan, make_plan
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
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
    recipe = run.recipe
    plan = make_plan(recipe, stages_for(recipe), SHARD_COLUMNS)
    with open_device(settings.device, settings.threads) as device:
        models = ModelSet(recipe.models, strict=settings.strict_engines)
        context = settings.context(device, models, plan.wanted)
        profiled = watcher(run, plan, context) if watcher else nullcontext(Spans())
        with profiled as spans, serve_metrics(spans, settings.metrics_port, settings.metrics_address, device, models):
            score(run, plan, context, progress, not settings.score_everything, spans=spans, shards=shards)
    return spans


def score_on_several(run: Run, settings: Settings, progress: Progress) -> Spans:
    """Runs SCORE on `settings.devices`, with one worker process for each.

    A worker takes the next shard when it has read its last one. Worker i gets an equal share of the cores and of the
    memory limit, and serves metrics at `settings.metrics_port` + i.

    Args:
        run: the run folder.
        settings: the devices, one per worker, and the limits of all workers together.
        progress: receives the rows of all workers.

    Returns:
        The counts and times of the stages, summed over all workers.

    Raises:
        DanqingError: a worker failed; has the worker's message. The other workers are stopped.
    """
    context = get_context("spawn")
    shards, next_shard = run.unscored(), context.Value("q", 0)
    threads = settings.threads or max(available_threads() // len(settings.devices), 1)
    memory = settings.memory_limit and settings.memory_limit // len(settings.devices)
    workers: list[_Worker] = []
    for number, device in enumerate(settings.devices):
        port = None if settings.metrics_port is None else settings.metrics_port + number
        own = replace(settings, device=device, devices=(), threads=threads, memory_limit=memory, metrics_port=port)
        receiver, sender = context.Pipe(duplex=False)
        arguments = (run.folder, own, shards, next_shard, sender)
        process = context.Process(target=_run_worker, args=arguments, name=f"danqing {device}")
        workers.append(_Worker(process, receiver, sender))
    total = Spans()
    with _running(workers):
        for kind, content in _messages(workers):
            if kind == "done":
                _add_spans(total, content[0])
                if content[1]:
                    run.manifest.setdefault("refused_engines", {}).update(content[1])
            elif kind == "failed":
                raise DanqingError(content[0])
            else:
                getattr(progress, kind)(*content)
    return total


class _Worker(NamedTuple):
    """A worker process, and both ends of the pipe that it sends messages by.

    Each has a pipe of its own, so that a worker that is killed while it sends does not block the others.
    """

    process: Any
    receiver: Connection
    sender: Connection

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
            worker.sender.close()  # so that the pipe ends with the worker
        yield
    finally:
        started = [worker for worker in workers if worker.process.pid is not None]
        stopped = time.monotonic()
        for worker in started:
            if worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGINT)
        receivers = {worker.receiver for worker in started}
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


def _messages(workers: Sequence[_Worker]) -> Iterator[tuple[str, list[Any]]]:
    """Yields the messages of all workers until all have ended.

    Raises:
        DanqingError: a worker ended with an error.
    """
    of = {worker.receiver: worker for worker in workers}
    while of:
        for receiver in wait(list(of)):
            assert isinstance(receiver, Connection)
            try:
                kind, *content = receiver.recv()
            except (EOFError, OSError):  # OSError: it was killed in the middle of a message
                of.pop(receiver).check()
            else:
                yield kind, content


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks the signals that end a run, in this thread and in processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _SentProgress:
    """Progress that a worker sends to its parent, from any thread."""

    def __init__(self, sender: Connection) -> None:
        self.sender, self._lock = sender, threading.Lock()

    def expect(self, rows: int, size: int) -> None:
        self._send("expect", rows, size)

    def advance(self, rows: int) -> None:
        self._send("advance", rows)

    def say(self, line: str) -> None:
        self._send("say", line)

    def _send(self, *message: Any) -> None:
        with self._lock:
            self.sender.send(message)


def _claim_shards(shards: list[Shard], next_shard: Any) -> Iterator[Shard]:
    """Yields shards that no other worker has claimed; `next_shard` is a counter shared by all workers."""
    while True:
        with next_shard.get_lock():
            number = next_shard.value
            next_shard.value += 1
        if number >= len(shards):
            return
        yield shards[number]


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


def _run_worker(folder: Path, settings: Settings, shards: list[Shard], next_shard: Any, sender: Connection) -> None:
    """The main function of a worker process."""
    end_with_parent()
    for stop in STOP_SIGNALS:
        signal.signal(stop, _stop_once)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        run = Run.open(folder)
        with run.logged():
            spans = score_on_one(run, settings, _SentProgress(sender), _claim_shards(shards, next_shard))
        for span in spans.values():
            span.waiting = None  # refers to a queue of this process, and cannot be pickled
        sender.send(("done", dict(spans), run.manifest.get("refused_engines")))
    except DanqingError as problem:
        sender.send(("failed", f"{settings.device}: {problem}"))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _add_spans(total: Spans, spans: dict[str, Span]) -> None:
    for name, span in spans.items():
        total[name] = total[name] + span if name in total else span
