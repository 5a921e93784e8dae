"""The ledger of SCORE: collects finished rows from all stages, and writes each shard when it is complete."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from danqing.engine.core import damage as damages
from danqing.engine.core.batch import Batch
from danqing.engine.core.carried import RESERVED, carried_fields, carried_table
from danqing.engine.core.columns import FEATURES, arrow_types
from danqing.engine.core.damage import Damage
from danqing.engine.core.escape import valid_text
from danqing.engine.core.files import commit
from danqing.engine.core.logs import event, log
from danqing.engine.core.progress import Progress
from danqing.engine.core.text_column import TextColumn
from danqing.engine.run.folder import Run
from danqing.engine.sources import Shard
from danqing.engine.stages import stored_columns

ENGINES = b"danqing.engines"
"""Key in the metadata of a shard's scores: role → SHA-256 of the model or engine file that scored it."""
FEATURES_HASH = b"danqing.features"
"""Key in the metadata of a shard's scores: XXH3 of its features, so that a hash of the scores covers both files."""
ENCODINGS = b"danqing.encodings"
"""Key in the metadata of a shard's scores: encoding → number of texts read with it, without UTF-8."""
READ_COLUMNS = ("row", "key", "input_key", "uid", "url", "caption", "image_hash", "image_bytes")
"""Columns that are stored as they were read, before the scores; `shard` is stored by name, in front of them."""
OUTCOME_COLUMNS = ("gated_at", "error")


@dataclass
class _OpenShard:
    """A shard of which not all rows have been entered.

    Attributes:
        started: `time.monotonic` when the shard was opened.
        damage, encodings: of the source, which fills them while it is read.
        entered: number of rows entered.
        tables: the columns of `Ledger.schema`, of the rows entered.
        metadata: row → the input's own fields.
        features: row → float16 (dimension,).
    """

    shard: Shard
    rows: int
    started: float
    damage: Sequence[Damage] = ()
    encodings: Mapping[str, int] = field(default_factory=dict)
    entered: int = 0
    tables: list[pa.Table] = field(default_factory=list)
    metadata: dict[int, dict[str, Any]] = field(default_factory=dict)
    features: dict[int, np.ndarray] = field(default_factory=dict)

    def add(self, part: Batch, table: pa.Table) -> bool:
        """Adds rows of this shard, and `table`, their columns in Arrow; returns whether the shard is complete."""
        rows = part["row"].tolist()
        self.tables.append(table)
        self.metadata.update(zip(rows, part["metadata"], strict=True))
        if FEATURES in part:
            found = zip(rows, part[FEATURES], part["error"], strict=True)
            self.features.update({row: vector for row, vector, error in found if error is None})
        self.entered += len(part)
        return self.entered == self.rows


def _in_order(tables: list[pa.Table]) -> pa.Table:
    """Empties the list and returns its rows by `row`, a column at a time: only one column is in memory twice."""
    joined = pa.concat_tables(tables)
    tables.clear()
    order = np.argsort(joined["row"].to_numpy(), kind="stable")
    names, columns = joined.column_names, joined.columns[::-1]
    del joined
    ordered = []
    while columns:
        ordered.append(columns.pop().take(order))
        pa.default_memory_pool().release_unused()
    return pa.table(ordered, names)


class Ledger:
    """Collects finished rows. When a shard's last row is entered, writes its features, then its scores.

    Threads may enter rows concurrently; the thread that enters a shard's last row writes the shard's files.

    Args:
        run: the run folder to write to.
        scores: the stored score columns and their Arrow types.
        progress: receives the rows of every shard opened, and every row entered.
        running: role → SHA-256 of the model or engine file in use; stored with every shard.
    """

    def __init__(
        self, run: Run, scores: dict[str, pa.DataType], progress: Progress, running: Mapping[str, str] | None = None
    ) -> None:
        self.run, self.progress, self.running = run, progress, {} if running is None else running
        self.schema = arrow_types(READ_COLUMNS) | scores | arrow_types(OUTCOME_COLUMNS)
        self._open: dict[int, _OpenShard] = {}
        self._lock = threading.Lock()

    def expect(
        self,
        shard: Shard,
        rows: int,
        started: float,
        damage: Sequence[Damage] = (),
        encodings: Mapping[str, int] | None = None,
    ) -> None:
        """Opens a shard.

        Args:
            rows: how many of its rows will be entered.
            started: `time.monotonic` when the shard was opened.
            damage, encodings: of the source; complete when its last row is entered.
        """
        self._open[shard.number] = _OpenShard(shard, rows, started, damage, {} if encodings is None else encodings)
        self.progress.expect(rows, shard.bytes)
        if rows == 0:
            self._commit(self._open.pop(shard.number))

    def enter(self, batch: Batch, gated_at: str | None = None) -> None:
        """Takes rows that are finished, have an `error`, or were dropped by the gate before the stage `gated_at`."""
        batch["gated_at"] = [gated_at] * len(batch)
        numbers = np.unique(batch["shard"]).tolist()
        for number in numbers:
            entry = self._open[number]
            part = batch if len(numbers) == 1 else batch.take(batch["shard"] == number)
            columns = [_column(part, name, kind) for name, kind in self.schema.items()]
            table = pa.Table.from_arrays(columns, list(self.schema))
            with self._lock:
                complete = entry.add(part, table)
            if complete:
                self._commit(self._open.pop(number))
        self.progress.advance(len(batch))

    def close(self) -> None:
        """Checks that all rows of all shards were entered.

        Raises:
            RuntimeError: rows are missing, which is a bug; names how many of which shards.
        """
        if self._open:
            missing = {entry.shard.name: entry.rows - entry.entered for entry in self._open.values()}
            raise RuntimeError(f"rows were read but never entered in the ledger: {missing}")

    def _commit(self, entry: _OpenShard) -> None:
        kept = sorted(entry.features)
        features = np.stack([entry.features[row] for row in kept]) if kept else np.empty((0, 0), np.float16)
        metadata = {
            ENGINES: json.dumps(self.running).encode(),
            FEATURES_HASH: xxhash.xxh3_128_hexdigest(features.data).encode(),
            **damages.to_metadata(entry.damage),
        }
        if entry.encodings:
            metadata[ENCODINGS] = json.dumps(entry.encodings).encode()
        table = self._assemble(entry, kept).replace_schema_metadata(metadata)
        with commit(self.run.features_path(entry.shard.number)) as file:
            np.save(file, features)
        with commit(self.run.scores_path(entry.shard.number)) as file:
            pq.write_table(table, file)
        for problem in entry.damage:
            log.warning("damaged: %s", problem)
        for encoding, count in entry.encodings.items():
            log.info("%s: %d texts read as %s", entry.shard.name, count, encoding)
        errors, seconds = entry.rows - table["error"].null_count, time.monotonic() - entry.started
        figures = event(
            "shard.scored",
            shard=entry.shard.name,
            pairs=entry.rows,
            errors=errors,
            seconds=round(seconds, 3),
            pairs_per_second=round(entry.rows / max(seconds, 1e-9), 3),
            engines=dict(self.running),
        )
        log.info("scored %s: %d pairs, %d errors, %.1f s", entry.shard.name, entry.rows, errors, seconds, extra=figures)

    def _assemble(self, entry: _OpenShard, with_features: list[int]) -> pa.Table:
        """Makes the shard's table, in input order: identity, input, scores, outcome, the input's own fields."""
        schema = pa.schema(self.schema)
        table = _in_order(entry.tables or [schema.empty_table()])
        table = table.add_column(0, "shard", pa.array([entry.shard.name] * entry.rows, pa.string()))
        feature_row = np.full(entry.rows, -1, np.int32)
        feature_row[with_features] = np.arange(len(with_features))
        table = table.append_column("feature_row", pa.array(feature_row))
        carried = carried_table(_carried_records(table, [entry.metadata[row] for row in range(entry.rows)]))
        for kind, column in zip(carried.schema, carried.columns, strict=True):
            table = table.append_column(kind, column)
        return table.combine_chunks()


def _carried_records(table: pa.Table, metadata: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made = frozenset(table.column_names)
    reserved = RESERVED | made | stored_columns().keys()
    identities = table.select(["uid", "url", "caption", "image_bytes"]).to_pylist()
    return [carried_fields(fields, row, made, reserved) for fields, row in zip(metadata, identities, strict=True)]


def read_report(path: Path) -> tuple[list[Damage], dict[str, int]]:
    """Returns the damage and the encodings (see `ENCODINGS`) in the metadata of a shard's scores."""
    metadata = pq.read_schema(path).metadata or {}
    return damages.from_metadata(metadata), json.loads(metadata.get(ENCODINGS, b"{}"))


def _column(part: Batch, name: str, kind: pa.DataType) -> pa.Array:
    if name not in part:
        return pa.nulls(len(part), kind)
    values = part[name]
    if isinstance(values, TextColumn):
        return values.arrow().cast(kind)
    if isinstance(values, list):
        try:
            return pa.array(values, kind)
        except UnicodeEncodeError:  # lone surrogates
            return pa.array([None if value is None else valid_text(value) for value in values], kind)
    if pa.types.is_floating(kind):
        values = values.astype(kind.to_pandas_dtype(), copy=False)  # three times as fast as Arrow's cast
        values = np.where(np.isfinite(values), values, np.nan)
    return pa.array(values, kind, from_pandas=True)  # NaN becomes null
