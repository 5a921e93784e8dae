"""Runs SCORE on one device in this process, or on several devices of a host with one worker process each."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

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
from danqing.engine.stages import CATALOGUE, Context
from danqing.trt_models.model_set import ModelSet

POLL_SECONDS = 0.2
SHUTDOWN_GRACE_SECONDS = 5.0

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
    plan = make_plan(recipe, CATALOGUE, SHARD_COLUMNS)
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
    shards, next_shard, messages = run.unscored(), context.Value("q", 0), context.SimpleQueue()
    threads = settings.threads or max(available_threads() // len(settings.devices), 1)
    memory = settings.memory_limit and settings.memory_limit // len(settings.devices)
    workers = []
    for number, device in enumerate(settings.devices):
        port = None if settings.metrics_port is None else settings.metrics_port + number
        own = replace(settings, device=device, devices=(), threads=threads, memory_limit=memory, metrics_port=port)
        arguments = (run.folder, own, shards, next_shard, messages)
        workers.append(context.Process(target=_run_worker, args=arguments, name=f"danqing {device}"))
    total = Spans()
    with _running(workers, messages):
        active = len(workers)
        while active:
            if not messages.empty():
                kind, *content = messages.get()
                if kind == "done":
                    _add_spans(total, content[0])
                    active -= 1
                elif kind == "failed":
                    raise DanqingError(content[0])
                else:
                    getattr(progress, kind)(*content)
                continue
            wait([worker.sentinel for worker in workers if worker.is_alive()], POLL_SECONDS)
            dead = [w for w in workers if w.exitcode not in (None, 0)]
            if dead and messages.empty():
                raise DanqingError(f"the process of {dead[0].name} ended with {dead[0].exitcode}; see run.log")
    run.manifest = Run.open(run.folder).manifest  # the workers have added the engines that scored the shards
    return total


@contextmanager
def _running(workers: Sequence[Any], messages: Any) -> Iterator[None]:
    """Starts the processes; at the end of the `with` block waits for them, or interrupts them if it raises."""
    for worker in workers:
        worker.start()
    try:
        yield
        for worker in workers:
            worker.join()
    finally:
        stopped = time.monotonic()
        for worker in workers:
            if worker.is_alive():
                os.kill(worker.pid, signal.SIGINT)
        while alive := [worker for worker in workers if worker.is_alive()]:
            if not messages.empty():
                messages.get()  # a worker cannot stop while it waits for space in the queue
                continue
            ended = wait([worker.sentinel for worker in alive], POLL_SECONDS)
            if not ended and time.monotonic() - stopped > SHUTDOWN_GRACE_SECONDS:
                for worker in alive:
                    worker.kill()


class _QueueProgress:
    """Progress that a worker sends to its parent."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def expect(self, rows: int, size: int) -> None:
        self.queue.put(("expect", rows, size))

    def advance(self, rows: int) -> None:
        self.queue.put(("advance", rows))

    def say(self, line: str) -> None:
        self.queue.put(("say", line))


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
    """Handles SIGINT once: it comes from the terminal and from the parent, and the second would break the shutdown."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run_worker(folder: Path, settings: Settings, shards: list[Shard], next_shard: Any, messages: Any) -> None:
    """The main function of a worker process."""
    signal.signal(signal.SIGINT, _stop_once)
    run = Run.open(folder)
    try:
        with run.logged():
            spans = score_on_one(run, settings, _QueueProgress(messages), _claim_shards(shards, next_shard))
        for span in spans.values():
            span.waiting = None  # refers to a queue of this process, and cannot be pickled
        messages.put(("done", dict(spans)))
    except DanqingError as problem:
        messages.put(("failed", f"{settings.device}: {problem}"))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _add_spans(total: Spans, spans: dict[str, Span]) -> None:
    for name, span in spans.items():
        total[name] = total[name] + span if name in total else span
