"""Runs the stages on the cores of a CPU: each thread takes the next batch and runs all stages on it.

A stage that splits each of its batches over all cores leaves cores idle at the end of every kernel, and while the code
between two kernels runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from danqing.engine.core.batch import Batch
from danqing.engine.core.spans import Spans
from danqing.engine.recipe.plan import Plan
from danqing.engine.score.loop import RowSink, run_stage
from danqing.engine.stages import Context, Stage


def run_on_cores(batches: Iterator[Batch], plan: Plan, context: Context, ledger: RowSink, spans: Spans) -> None:
    """Runs all stages and gates of a plan on a stream of batches, as many at a time as the device has threads.

    Args:
        batches: rows with the columns that the first stages need. A batch is not joined with others; it is split if a
            stage takes fewer rows at once.
        plan: the stages and gates.
        context: what the stages need to open; its device is a CPU.
        ledger: receives every row when it leaves the stages, in any order.
        spans: receives the sums of all threads.
    """
    device = context.device
    context = replace(context, device=replace(device, threads=1))
    spans.open(step.stage.name for step in plan.steps)
    workers = [([step.stage(context) for step in plan.steps], Spans()) for _ in range(device.threads)]
    shared = _Shared(batches)
    with ThreadPoolExecutor(len(workers), "danqing stages") as pool:
        running = [pool.submit(_run_batches, shared, plan, stages, ledger, own) for stages, own in workers]
        try:
            for future in running:
                future.result()
        finally:
            shared.stop()
    for _, own in workers:
        spans.add(own)


def _run_batches(batches: _Shared, plan: Plan, stages: list[Stage], ledger: RowSink, spans: Spans) -> None:
    """Runs all stages on one batch after the other, until there is none left or another thread failed."""
    following = [*(stage.name for stage in stages[1:]), None]
    try:
        for batch in batches:
            stream: Iterator[Batch] = iter((batch,))
            for stage, step, after in zip(stages, plan.steps, following, strict=True):
                stream = run_stage(stream, stage, step, ledger, spans, after)
            for finished in stream:
                ledger.enter(finished)
    finally:
        batches.stop()  # after an error, the other threads end with their batch


class _Shared:
    """An iterator that several threads draw from."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._lock = threading.Lock()
        self._stopped = False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        with self._lock:
            if self._stopped:
                raise StopIteration
            return next(self._batches)

    def stop(self) -> None:
        self._stopped = True
