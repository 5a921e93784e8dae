"""SCORE: runs the stages on every row of every shard, once.

read → stage → gate → stage → gate → … → scores/NNNNN.parquet + features/NNNNN.npy

The stages are a chain of iterators over batches. A gate removes the rows that a criterion has dropped, so that no
costlier stage processes them. The remaining rows are packed into full batches, across shard borders. Every stage that
packs runs in its own thread, so reading, text, decoding and each of the models run concurrently.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from danqing.engine.core.batch import Batch, pack
from danqing.engine.core.columns import ENCODED, SHARD_COLUMNS
from danqing.engine.core.logs import log
from danqing.engine.core.memory import Memory, text_bytes
from danqing.engine.core.progress import Progress
from danqing.engine.core.spans import Span, Spans
from danqing.engine.core.storage import fetch_ahead
from danqing.engine.core.text_column import TextColumn
from danqing.engine.recipe.criteria import RowCriterion
from danqing.engine.recipe.plan import Plan, Step
from danqing.engine.run.folder import Run
from danqing.engine.score.ledger import Ledger
from danqing.engine.score.overlap import Overlap
from danqing.engine.sources import Layout, Sample, Shard, open_shard
from danqing.engine.stages import Context, Stage

READ_ROWS = 256
"""Maximum number of rows of a batch as it is read."""


class RowSink(Protocol):
    """Receives the rows that leave the pipeline. All stages' threads call it."""

    def enter(self, batch: Batch, gated_at: str | None = None) -> None:
        """Takes rows that are finished, have an `error`, or were dropped by the gate before the stage `gated_at`."""


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
    """Scores the shards of a run that have no scores. A shard's files appear when its last row is finished.

    Args:
        run: the run folder.
        plan: the stages and gates, made from the run's recipe.
        context: what the stages need to open.
        progress: receives the rows of every shard opened, and every row finished.
        gated: False computes every score of every row (`--score-everything`).
        room: see `run_stages`.
        spans: records every batch; None: new spans.
        shards: the shards to score; None: all that have no scores. The next shard is taken when its rows are needed.

    Returns:
        The spans.
    """
    spans = Spans() if spans is None else spans
    ledger = Ledger(run, plan.scores, progress, context.models.running)
    shards = iter(run.unscored()) if shards is None else shards
    for shard in shards:
        batches = read(shards_until_engine_change(chain([shard], shards), context), run.layout, ledger, context.memory)
        batches = spans.timed("read", batches, lambda batch: batch.bytes((ENCODED, "caption")))
        run_stages(batches, plan, context, ledger, spans, gated, room)
        # The parent writes the manifest: several workers would overwrite each other's notes.
        if context.models.refused:
            run.manifest.setdefault("refused_engines", {}).update(context.models.refused)
        context.models.reopen(context.device)
    ledger.close()
    return spans


def shards_until_engine_change(shards: Iterable[Shard], context: Context) -> Iterator[Shard]:
    """Yields shards until another engine has been activated for a model.

    The caller then opens new sessions and goes on with the remaining shards, so no shard is scored by two engines.
    """
    for shard in shards:
        yield shard
        if swapped := context.models.outdated(context.device):
            log.info("another engine was activated for %s; it scores from the next shard on", ", ".join(swapped))
            return


def run_stages(
    batches: Iterator[Batch],
    plan: Plan,
    context: Context,
    ledger: RowSink,
    spans: Spans,
    gated: bool = True,
    room: int = 1,
) -> None:
    """Runs all stages and gates of a plan on a stream of batches; enters every row in the ledger once.

    Args:
        batches: rows with the columns that the first stages need.
        plan: the stages and gates.
        context: what the stages need to open.
        ledger: receives every row when it leaves the pipeline.
        spans: records every batch.
        gated: False ignores the gates.
        room: capacity of the queue between two threads, in batches; with 0 all stages run in the caller's thread.
    """
    stages = [step.stage(context) for step in plan.steps]
    if context.memory.limit:
        context.models.warm_up()
        context.memory.settle()
    spans.open(["read", *(stage.name for stage in stages)])
    with Overlap(spans, room, context.device.entered) as overlap, _stopping(context):
        thread = "read"
        for position, (step, stage) in enumerate(zip(plan.steps, stages, strict=True)):
            if stage.capacity is not None or thread == "read":
                batches, thread = overlap.prefetch(batches, thread), stage.name
            following = plan.steps[position + 1].stage.name if position + 1 < len(plan.steps) else None
            batches = run_stage(batches, stage, step, ledger, spans, following if gated else None)
        for batch in overlap.prefetch(batches, thread):
            ledger.enter(batch)


@contextmanager
def _stopping(context: Context) -> Iterator[None]:
    """Ends the waits of stages for servers if the `with` block raises, since their threads are then joined."""
    try:
        yield
    except BaseException:
        context.stopped.set()
        raise


def read(shards: Iterable[Shard], layout: Layout, ledger: Ledger, memory: Memory) -> Iterator[Batch]:
    """Opens the shards in order and yields their rows in batches; announces each shard to the ledger."""
    for shard in fetch_ahead(shards, lambda shard: shard.path):
        started = time.monotonic()
        source = open_shard(shard, layout)
        ledger.expect(shard, len(source), started, source.damage, source.encodings)
        yield from batches_of(shard, source, memory)


def batches_of(shard: Shard, source: Iterable[Sample], memory: Memory) -> Iterator[Batch]:
    """A shard's samples with the columns of `SHARD_COLUMNS`."""
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row, sample in enumerate(source):
        url = sample.metadata.get("url")
        text = text_bytes(sample.caption, sample.metadata)
        if rows and (len(rows) == READ_ROWS or size + len(sample.image) + text > memory.encoded):
            yield _batch(rows)
            rows, size = [], 0
        own_url = url if isinstance(url, str) else None
        identity = (shard.number, row, sample.key, sample.input_key, sample.uid, own_url)
        picture = (sample.image, sample.image_hash, len(sample.image))
        rows.append((*identity, sample.caption, *picture, text, sample.metadata, sample.error))
        size += len(sample.image) + text
    if rows:
        yield _batch(rows)


def _batch(rows: list[tuple[Any, ...]]) -> Batch:
    by_column = zip(SHARD_COLUMNS, zip(*rows, strict=True), strict=True)
    columns: dict[str, Any] = {name: list(column) for name, column in by_column}
    for name in ("shard", "row", "image_bytes", "text_bytes"):
        columns[name] = np.array(columns[name], np.int64)
    for name in ("url", "caption"):
        columns[name] = TextColumn.of(columns[name])
    return Batch(columns)


def run_stage(
    batches: Iterable[Batch], stage: Stage, step: Step, ledger: RowSink, spans: Spans, following: str | None
) -> Iterator[Batch]:
    """Runs one stage and the gate that follows it; enters rows that fail or are dropped in the ledger.

    Args:
        step: the stage's place in the plan: its gates, and the columns that no later stage needs.
        following: name of the next stage, stored as `gated_at` of dropped rows; None ignores the gates.

    Yields:
        The remaining rows.
    """
    if stage.capacity is not None:
        batches = pack(batches, 1.0, partial(pack_weight, stage))
    span = spans.setdefault(stage.name, Span())
    gates = step.gates if following is not None else []
    for batch in batches:
        with spans(stage.name, len(batch)):
            apply_stage(stage, batch)
        if spans.profiled:
            _record_batch(batch, stage, span)
        batch.drop(step.spent)
        batch = batch.texts_on_host(step.needed)
        if gates or batch["error"].count(None) < len(batch):
            batch = _passing(batch, stage, gates, ledger, span, following)
        span.passed += len(batch)
        if len(batch):
            yield batch


def _passing(
    batch: Batch, stage: Stage, gates: Sequence[RowCriterion], ledger: RowSink, span: Span, following: str | None
) -> Batch:
    """Returns the rows that have no error and pass every gate; enters the others in the ledger."""
    valid = np.array([error is None for error in batch["error"]])
    if not valid.all():
        span.failed += int((~valid).sum())
        ledger.enter(batch.texts_on_host().take(~valid))
    passes = valid.copy()
    for gate in gates:
        dropped = passes & ~gate.passes(batch)
        span.dropped[gate.name] += int(dropped.sum())
        passes &= ~dropped
    if (valid & ~passes).any():
        ledger.enter(batch.texts_on_host().take(valid & ~passes), gated_at=following)
    if passes.all():
        return batch
    remaining = batch.take(passes)
    stage.context.device.wait()
    return remaining


def pack_weight(stage: Stage, batch: Batch) -> np.ndarray:
    """Returns the share of a full batch that each row takes: float64 (rows,).

    The larger of the row's shares of the stage's capacity and of the bound on the bytes of picture, caption and
    metadata.
    """
    assert stage.capacity is not None
    weight = stage.weights(batch) / stage.capacity
    held = batch["text_bytes"] + batch["image_bytes"] if ENCODED in batch else batch["text_bytes"]
    return np.maximum(weight, held / stage.context.memory.encoded)


def apply_stage(stage: Stage, batch: Batch) -> None:
    """Runs the stage on the batch, and synchronizes its stream, so that other threads can use the columns.

    Columns that are stored are copied to the host; columns that only later stages use stay on the device.
    """
    stage(batch)
    for name, column in stage.produces.items():
        if column.type is None or name not in batch or isinstance(batch[name], list):
            continue
        if isinstance(batch[name], TextColumn):
            batch[name].arrow()
            continue
        batch[name] = stage.context.device.down(batch[name])
        # A gate must see what DECIDE will read: the score as it is stored, compared as float64.
        if pa.types.is_floating(column.type):
            batch[name] = batch[name].astype(column.type.to_pandas_dtype()).astype(np.float64)
            _fail_non_finite(stage, batch, name)
    stage.context.device.wait()


def _fail_non_finite(stage: Stage, batch: Batch, name: str) -> None:
    """Makes a non-finite score the error of its row; the ledger stores no value for it."""
    for row in np.flatnonzero(~np.isfinite(batch[name])).tolist():
        if batch["error"][row] is None:
            value = "NaN" if np.isnan(batch[name][row]) else "an infinite number"
            batch["error"][row] = f"{stage.maker_of(name)} gave {value} for {name}"


def _record_batch(batch: Batch, stage: Stage, span: Span) -> None:
    """Adds the values that are only recorded while profiling."""
    span.bytes_read += batch.bytes(stage.needs)
    span.bytes_written += batch.bytes(stage.produces)
    span.peak_device_bytes = max(span.peak_device_bytes, stage.context.device.held())
    if stage.capacity is not None:
        span.fill_sum += float(pack_weight(stage, batch).sum())
        span.batches += 1
