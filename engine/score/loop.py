"""SCORE: every row of every shard through the stages, once.

read → stage → gate → stage → gate → … → scores/NNNNN.parquet + features/NNNNN.npy

The stages are a chain of streams of batches. A gate takes the rows out that a criterion has already dropped, so
that no costlier stage sees them; what passes is packed with the rows that follow, across shard borders. A
stage that packs begins a thread of its own, so that reading, text, decoding and each of the models work at the same
time, a batch ahead of one another.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from danqing.engine.core.batch import Batch, pack
from danqing.engine.core.columns import ENCODED, SHARD_COLUMNS
from danqing.engine.core.memory import Memory
from danqing.engine.core.progress import Progress
from danqing.engine.core.spans import Span, Spans
from danqing.engine.recipe.criteria import RowCriterion
from danqing.engine.recipe.plan import Plan, Step
from danqing.engine.run.folder import Run, log
from danqing.engine.score.ledger import Ledger
from danqing.engine.score.overlap import Overlap
from danqing.engine.sources import Layout, Sample, Shard, open_shard
from danqing.engine.stages import Context, Stage

READ_ROWS = 256


class Exit(Protocol):
    """Where rows leave the stream, from any stage's thread."""

    def enter(self, batch: Batch, gated_at: str | None = None) -> None: ...


def score(
    run: Run,
    plan: Plan,
    context: Context,
    progress: Progress,
    gated: bool = True,
    room: int = 1,
    spans: Spans | None = None,
    shards: Iterator[Shard] | None = None,
) -> Spans:
    """Scores every shard that has no scores yet; each shard's files appear when its last row is in.

    Args:
        progress: hears of every shard opened and every row finished.
        gated: False computes every score of every row (`--score-everything`).
        room: see `run_stages`.
        spans: told of every batch; returned.
        shards: those to score (default: all that have no scores yet); the next is asked for when there is room.
    """
    spans = Spans() if spans is None else spans
    ledger = Ledger(run, plan.scores, progress, context.models.running)
    shards = iter(run.unscored()) if shards is None else shards
    for shard in shards:
        batches = read(until_swapped(chain([shard], shards), context), run.layout, ledger, context.memory)
        batches = spans.timed("read", batches, lambda batch: batch.bytes((ENCODED, "caption")))
        run_stages(batches, plan, context, ledger, spans, gated, room)
        if context.models.refused:
            run.note("refused_engines", **context.models.refused)
        context.models.reopen(context.device)
    ledger.close()
    return spans


def until_swapped(shards: Iterable[Shard], context: Context) -> Iterator[Shard]:
    """Takes shards one by one, until another engine is in use than the open sessions have: the stream then runs out,
    and the next begins with new sessions. So no shard is scored by two engines of a model."""
    for shard in shards:
        yield shard
        if swapped := context.models.outdated(context.device):
            log.info("another engine was activated for %s; it scores from the next shard on", ", ".join(swapped))
            return


def run_stages(
    batches: Iterator[Batch],
    plan: Plan,
    context: Context,
    ledger: Exit,
    spans: Spans,
    gated: bool = True,
    room: int = 1,
) -> None:
    """A stream of batches through all stages and gates of a plan; every row is entered in the ledger once.

    Args:
        room: batches that wait between two threads; with 0 there are none, and stages take turns.
    """
    stages = [step.stage(context) for step in plan.steps]
    if context.memory.limit:
        context.models.warm_up()
        context.memory.settle()
    spans.open(["read", *(stage.name for stage in stages)])
    with Overlap(spans, room, context.device.entered) as overlap:
        thread = "read"
        for position, (step, stage) in enumerate(zip(plan.steps, stages, strict=True)):
            if stage.capacity is not None or thread == "read":
                batches, thread = overlap.ahead(batches, thread), stage.name
            following = plan.steps[position + 1].stage.name if position + 1 < len(plan.steps) else None
            batches = through(batches, stage, step, ledger, spans, following if gated else None)
        for batch in overlap.ahead(batches, thread):
            ledger.enter(batch)


def read(shards: Iterable[Shard], layout: Layout, ledger: Ledger, memory: Memory) -> Iterator[Batch]:
    """The rows of the shards, in order, a few megabytes at a time."""
    for shard in shards:
        started = time.monotonic()
        source = open_shard(shard, layout)
        if source.damage:
            log.warning("shard %s: %s; its %d whole samples are used", shard.name, source.damage, len(source))
        ledger.expect(shard, len(source), started)
        yield from batches_of(shard, source, memory)


def batches_of(shard: Shard, source: Iterable[Sample], memory: Memory) -> Iterator[Batch]:
    """A shard's samples with the columns of `SHARD_COLUMNS`."""
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row, sample in enumerate(source):
        url = sample.metadata.get("url")
        if rows and (len(rows) == READ_ROWS or size + len(sample.image) > memory.encoded):
            yield _batch(rows)
            rows, size = [], 0
        identity = (shard.number, row, sample.key, sample.uid, url if isinstance(url, str) else None)
        rows.append((*identity, sample.caption, sample.image, len(sample.image), sample.metadata, None))
        size += len(sample.image)
    if rows:
        yield _batch(rows)


def _batch(rows: list[tuple[Any, ...]]) -> Batch:
    by_column = zip(SHARD_COLUMNS, zip(*rows, strict=True), strict=True)
    columns: dict[str, Any] = {name: list(column) for name, column in by_column}
    for name in ("shard", "row", "image_bytes"):
        columns[name] = np.array(columns[name], np.int64)
    return Batch(columns)


def through(
    batches: Iterable[Batch], stage: Stage, step: Step, ledger: Exit, spans: Spans, following: str | None
) -> Iterator[Batch]:
    """One stage and the gate behind it. Rows that go no further are entered in the ledger here."""
    if stage.capacity is not None:
        batches = pack(batches, 1.0, partial(load, stage))
    span = spans.setdefault(stage.name, Span())
    gates = step.gates if following is not None else []
    for batch in batches:
        with spans(stage.name, len(batch)):
            work(stage, batch)
        if spans.profiled:
            _weigh(batch, stage, span)
        batch.drop(step.spent)
        if gates or batch["error"].count(None) < len(batch):
            batch = _passing(batch, stage, gates, ledger, span, following)
        span.passed += len(batch)
        if len(batch):
            yield batch


def _passing(
    batch: Batch, stage: Stage, gates: Sequence[RowCriterion], ledger: Exit, span: Span, following: str | None
) -> Batch:
    """Returns the rows that have no error and pass every gate; enters the others in the ledger."""
    sound = np.array([error is None for error in batch["error"]])
    if not sound.all():
        span.failed += int((~sound).sum())
        ledger.enter(batch.take(~sound))
    passes = sound.copy()
    for gate in gates:
        falls = passes & ~gate.passes(batch)
        span.dropped[gate.name] += int(falls.sum())
        passes &= ~falls
    if (sound & ~passes).any():
        ledger.enter(batch.take(sound & ~passes), gated_at=following)
    if passes.all():
        return batch
    rest = batch.take(passes)
    stage.context.device.wait()
    return rest


def load(stage: Stage, batch: Batch) -> np.ndarray:
    """The share of a full batch that each row is: of the stage's capacity, or of what encoded pictures may take."""
    assert stage.capacity is not None
    load = stage.weights(batch) / stage.capacity
    return np.maximum(load, batch["image_bytes"] / stage.context.memory.encoded) if ENCODED in batch else load


def work(stage: Stage, batch: Batch) -> None:
    """The stage on the batch, until the device is done: for whoever uses it next, and before anything it has read is
    let go. What is stored comes to the host; what only travels stays where it is."""
    stage(batch)
    for name, column in stage.produces.items():
        if column.type is None or name not in batch or isinstance(batch[name], list):
            continue
        batch[name] = stage.context.device.down(batch[name])
        # A gate must see what DECIDE will read: the score as it is stored, compared as float64.
        if pa.types.is_floating(column.type):
            batch[name] = batch[name].astype(column.type.to_pandas_dtype()).astype(np.float64)
    stage.context.device.wait()


def _weigh(batch: Batch, stage: Stage, span: Span) -> None:
    span.taken += batch.bytes(stage.needs)
    span.made += batch.bytes(stage.produces)
    span.held = max(span.held, stage.context.device.held())
    if stage.capacity is not None:
        span.load += float(load(stage, batch).sum())
        span.batches += 1
