"""Who scores: one device, in this process; or several of a node, a process each, and shards for whoever is free."""

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
from danqing.engine.score.metrics import served
from danqing.engine.sources import Shard
from danqing.engine.stages import CATALOGUE, Context
from danqing.trt_models.model_set import ModelSet

LOOK, GRACE = 0.2, 5.0
"""Seconds after which the workers are looked at, whether they say something or not; and what they get to stop in."""


Watcher = Callable[[Run, Plan, Context], AbstractContextManager[Spans]]
"""Makes the context in which a run is scored and the spans that are told of it (`profiling.watch.watched`)."""


def score_on_one(
    run: Run,
    settings: Settings,
    progress: Progress,
    shards: Iterator[Shard] | None = None,
    watcher: Watcher | None = None,
) -> Spans:
    """SCORE on `settings.device`.

    Args:
        shards: see `score`.
        watcher: profiles the scoring.
    """
    recipe = run.recipe
    plan = make_plan(recipe, CATALOGUE, SHARD_COLUMNS)
    with open_device(settings.device, settings.threads) as device:
        models = ModelSet(recipe.models, strict=settings.strict_engines)
        context = settings.context(device, models, plan.wanted)
        watched = watcher(run, plan, context) if watcher else nullcontext(Spans())
        with watched as spans, served(spans, settings.metrics_port, settings.metrics_address, device, models):
            score(run, plan, context, progress, not settings.score_everything, spans=spans, shards=shards)
    return spans


def score_on_several(run: Run, settings: Settings, progress: Progress) -> Spans:
    """SCORE of the shards that are waiting, on `settings.devices`; returns what all workers' stages did together.

    Each worker has its share of the cores and of a memory limit, and a port of its own for its metrics, counted up.

    Raises:
        DanqingError: a worker could not go on; with its words. The others are stopped.
    """
    context = get_context("spawn")
    shards, taken, told = run.unscored(), context.Value("q", 0), context.SimpleQueue()
    threads = settings.threads or max(available_threads() // len(settings.devices), 1)
    memory = settings.memory_limit and settings.memory_limit // len(settings.devices)
    workers = []
    for number, device in enumerate(settings.devices):
        port = None if settings.metrics_port is None else settings.metrics_port + number
        own = replace(settings, device=device, devices=(), threads=threads, memory_limit=memory, metrics_port=port)
        workers.append(
            context.Process(target=_work, args=(run.folder, own, shards, taken, told), name=f"danqing {device}")
        )
    total = Spans()
    with _running(workers, told):
        left = len(workers)
        while left:
            if not told.empty():
                kind, *what = told.get()
                if kind == "done":
                    _add(total, what[0])
                    left -= 1
                elif kind == "failed":
                    raise DanqingError(what[0])
                else:
                    getattr(progress, kind)(*what)
                continue
            wait([worker.sentinel for worker in workers if worker.is_alive()], LOOK)
            fallen = [w for w in workers if w.exitcode not in (None, 0)]
            if fallen and told.empty():
                raise DanqingError(f"the process of {fallen[0].name} ended with {fallen[0].exitcode}; see run.log")
    run.manifest = Run.open(run.folder).manifest  # they have noted what scored the shards
    return total


@contextmanager
def _running(workers: Sequence[Any], told: Any) -> Iterator[None]:
    """Processes that are gone when the `with` block ends: on their own, or else as after Ctrl-C."""
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
            if not told.empty():
                told.get()  # who waits for room to tell something could not stop
            elif not wait([worker.sentinel for worker in alive], LOOK) and time.monotonic() - stopped > GRACE:
                for worker in alive:
                    worker.kill()


class _Told:
    """Progress that is told to the parent."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def expect(self, rows: int, size: int) -> None:
        self.queue.put(("expect", rows, size))

    def advance(self, rows: int) -> None:
        self.queue.put(("advance", rows))


def _whoever_is_free(shards: list[Shard], taken: Any) -> Iterator[Shard]:
    """The next shard that no worker has taken yet, until there are no more."""
    while True:
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if number >= len(shards):
            return
        yield shards[number]


def _stop_once(number: int, frame: Any) -> None:
    """Ctrl-C comes from the terminal and from the parent; the second must not disturb what the first has begun."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _work(folder: Path, settings: Settings, shards: list[Shard], taken: Any, told: Any) -> None:
    """What a worker does."""
    signal.signal(signal.SIGINT, _stop_once)
    run = Run.open(folder)
    try:
        with run.logged():
            spans = score_on_one(run, settings, _Told(told), _whoever_is_free(shards, taken))
        for span in spans.values():
            span.waiting = None  # a queue of this process
        told.put(("done", dict(spans)))
    except DanqingError as problem:
        told.put(("failed", f"{settings.device}: {problem}"))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _add(total: Spans, spans: dict[str, Span]) -> None:
    for name, span in spans.items():
        total[name] = total[name] + span if name in total else span
