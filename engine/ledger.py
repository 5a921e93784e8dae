"""The ledger of SCORE: rows come in from anywhere in the pipeline, whole shards go to disk."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.batch import Batch
from engine.criteria import FEATURES
from engine.files import commit
from engine.progress import Progress
from engine.run import Run, log
from engine.sources import Shard

IDENTITY = {"row": pa.int32(), "key": pa.string(), "uid": pa.string(), "url": pa.string()}


@dataclass
class _Open:
    """A shard whose rows are still coming in."""

    shard: Shard
    rows: int
    started: float
    entered: int = 0
    parts: list[tuple[Batch, str | None]] = field(default_factory=list)


class Ledger:
    """Collects finished rows; commits a shard's features, then its scores, when the last row has come in."""

    def __init__(self, run: Run, scores: Mapping[str, pa.DataType], progress: Progress) -> None:
        self.run, self.progress = run, progress
        self.scores = {"caption": pa.string(), "image_bytes": pa.int64(), **scores}
        self._open: dict[int, _Open] = {}

    def expect(self, shard: Shard, rows: int, started: float) -> None:
        self._open[shard.number] = _Open(shard, rows, started)
        self.progress.expect(rows, shard.bytes)
        if rows == 0:
            self._commit(self._open.pop(shard.number))

    def enter(self, batch: Batch, gated_at: str | None = None) -> None:
        """Takes rows out of the stream: finished, failed (`error`), or dropped before the stage `gated_at`."""
        batch.drop([name for name in batch.columns if name not in self._kept])
        for number in np.unique(batch["shard"]):
            entry = self._open[int(number)]
            part = batch.take(batch["shard"] == number)
            entry.parts.append((part, gated_at))
            entry.entered += len(part)
            if entry.entered == entry.rows:
                self._commit(self._open.pop(int(number)))
        self.progress.advance(len(batch))

    @property
    def _kept(self) -> set[str]:
        return {"shard", "row", "key", "uid", "url", "metadata", "error", FEATURES, *self.scores}

    def close(self) -> None:
        if self._open:
            lost = {entry.shard.name: entry.rows - entry.entered for entry in self._open.values()}
            raise RuntimeError(f"rows went into the stages and never came out: {lost}")

    def _commit(self, entry: _Open) -> None:
        table, features = self._assemble(entry)
        with commit(self.run.features(entry.shard.number)) as file:
            np.save(file, features)
        with commit(self.run.scores(entry.shard.number)) as file:
            pq.write_table(table, file)
        errors = entry.rows - table["error"].null_count
        seconds = time.monotonic() - entry.started
        log.info(
            "scored %s: %d pairs, %d errors, %d with features, %.1f s",
            entry.shard.name, entry.rows, errors, len(features), seconds,
        )  # fmt: skip

    def _assemble(self, entry: _Open) -> tuple[pa.Table, np.ndarray]:
        """The shard's rows in input order: one table, and the float16 features of the rows that have them."""
        order = np.argsort(np.concatenate([part["row"] for part, _ in entry.parts] or [np.empty(0, np.int64)]))

        def gather(name: str, kind: pa.DataType) -> pa.Array:
            columns = [_column(part, name, kind) for part, _ in entry.parts]
            return pa.concat_arrays(columns or [pa.array([], kind)]).take(pa.array(order))

        shard = pa.array([entry.shard.name] * entry.rows, pa.string())
        columns = {"shard": shard} | {name: gather(name, kind) for name, kind in IDENTITY.items()}
        columns |= {name: gather(name, kind) for name, kind in self.scores.items()}

        present = np.concatenate([np.full(len(p), FEATURES in p) for p, _ in entry.parts] or [np.empty(0, bool)])[order]
        rows = [part[FEATURES] for part, _ in entry.parts if FEATURES in part]
        having = np.concatenate([part["row"] for part, _ in entry.parts if FEATURES in part] or [np.empty(0, np.int64)])
        features = np.concatenate(rows)[np.argsort(having)] if rows else np.empty((0, 0), np.float16)
        columns["feature_row"] = pa.array(np.where(present, np.cumsum(present) - 1, -1), pa.int32())
        gated = [pa.array([gated_at] * len(part), pa.string()) for part, gated_at in entry.parts]
        columns["gated_at"] = pa.concat_arrays(gated or [pa.array([], pa.string())]).take(pa.array(order))
        columns["error"] = gather("error", pa.string())

        metadata = [record for part, _ in entry.parts for record in part["metadata"]]
        columns |= carried([metadata[i] for i in order], taken=set(columns))
        return pa.table(columns), features


def _column(part: Batch, name: str, kind: pa.DataType) -> pa.Array:
    if name not in part:
        return pa.nulls(len(part), kind)
    values = part[name]
    if isinstance(values, list):
        if kind == pa.string():  # what cannot be UTF-8 (lone surrogates from JSON) is replaced, not fatal
            values = [None if v is None else v.encode("utf-8", "replace").decode() for v in values]
        return pa.array(values, kind)
    missing = np.isnan(values) if values.dtype.kind == "f" else None
    return pa.array(values, mask=missing).cast(kind)


def carried(records: list[dict[str, Any]], taken: set[str]) -> dict[str, pa.Array]:
    """The input's own fields as columns, unknown ones included; a name of ours gets the prefix `input_`.

    A field whose values fit no single Arrow type is carried as JSON text.
    """
    names = sorted({name for record in records for name in record})
    out: dict[str, pa.Array] = {}
    for name in names:
        if name in ("key", "url", "uid"):
            continue  # already a row's identity
        values = [record.get(name) for record in records]
        try:
            column = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError, OverflowError):
            column = pa.array([None if v is None else json.dumps(v, ensure_ascii=True) for v in values], pa.string())
        if pa.types.is_struct(column.type) and column.type.num_fields == 0:
            column = pa.nulls(len(values), pa.string())  # Parquet has no empty struct
        out[f"input_{name}" if name in taken else name] = column
    return out
