"""The ledger of RECAPTION: collects answered rows, and writes a shard's recaptions when its last row has come."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import ANSWERED
from danqing.engine.core.files import commit
from danqing.engine.core.logs import event, log
from danqing.engine.core.progress import Progress
from danqing.engine.core.similarity import similarity_of
from danqing.engine.core.text_column import TextColumn
from danqing.engine.recipe.criteria import RowCriterion
from danqing.engine.run.folder import Run
from danqing.engine.run.recaptions import ALIGNMENT_DISTANCE, IDENTITY, RECAPTION_ALIGNMENT
from danqing.engine.stages.vlm.chat import Answer

ANSWER = "answer"
"""Column of a batch: list of (recaption, `Answer`)."""


@dataclass
class _OpenShard:
    """A shard some of whose rows are not answered yet; `tables` holds the others."""

    missing: int
    tables: list[pa.Table] = field(default_factory=list)


class RecaptionLedger:
    """Receives every row once, from the threads of the stages.

    Args:
        run: the run.
        identity: what the answers depend on, for the files' metadata.
        measured: columns that the stages compute of recaptions → their types.
        criteria: those of the recipe that read nothing else than these columns.
        progress: receives the shards.
    """

    def __init__(
        self,
        run: Run,
        identity: Mapping[str, Any],
        measured: Mapping[str, pa.DataType],
        criteria: tuple[RowCriterion, ...],
        progress: Progress,
    ) -> None:
        self.run, self.measured, self.criteria, self.progress = run, measured, criteria, progress
        self._metadata = {IDENTITY: json.dumps(identity, sort_keys=True).encode()}
        self._open: dict[int, _OpenShard] = {}
        self._lock = threading.Lock()

    def expect(self, number: int, known: pa.Table, missing: int, size: int) -> None:
        """Announces a shard: the recaptions that it has, the number of those it lacks, and the size of its input."""
        self._open[number] = _OpenShard(missing, [known.replace_schema_metadata(None)])
        self.progress.expect(missing, size)

    def enter(self, batch: Batch, gated_at: str | None = None) -> None:
        """Takes rows that the stages have measured, or that have no recaption to measure."""
        numbers = np.unique(batch["shard"]).tolist()
        for number in numbers:
            part = batch if len(numbers) == 1 else batch.take(batch["shard"] == number)
            table = self._table(part)
            with self._lock:
                shard = self._open[number]
                shard.tables.append(table)
                shard.missing -= len(part)
                complete = shard.missing == 0
            if complete:
                self._commit(number, self._open.pop(number))

    def _table(self, batch: Batch) -> pa.Table:
        answers: list[tuple[str | None, Answer]] = batch[ANSWER]
        records = [
            {**answer._asdict(), "row": row, "uid": uid, "recaption": recaption}
            for row, uid, (recaption, answer) in zip(batch["row"].tolist(), batch["uid"], answers, strict=True)
        ]
        schema = pa.schema([(column.name, column.type) for column in ANSWERED])
        table = pa.Table.from_pylist(records, schema)
        measured = batch["error"].count(None) == len(batch) and all(name in batch for name in self.measured)
        for name, kind in self.measured.items():
            values = _arrow(batch[name], kind) if measured else pa.nulls(len(batch), kind)
            if name == ALIGNMENT_DISTANCE:
                table = table.append_column(RECAPTION_ALIGNMENT, similarity_of(values))
            else:
                table = table.append_column(f"recaption_{name}", values)
        fails = np.full(len(batch), None, object)
        for criterion in reversed(self.criteria) if measured else ():
            fails[~criterion.passes(batch)] = criterion.name
        return table.append_column("recaption_fails", pa.array(fails, pa.string()))

    def _commit(self, number: int, shard: _OpenShard) -> None:
        table = pa.concat_tables(shard.tables, promote_options="default").sort_by("row")
        with commit(self.run.recaptions_path(number)) as file:
            pq.write_table(table.combine_chunks().replace_schema_metadata(self._metadata), file)
        outcomes = Counter(table["outcome"].to_pylist())
        listed = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        name = self.run.recaptions_path(number).stem
        figures = event("shard.recaptioned", shard=name, pairs=len(table), outcomes=dict(outcomes))
        log.info("recaptioned %s: %s", name, listed or "no pairs", extra=figures)


def _arrow(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, TextColumn):
        return values.arrow().cast(kind)
    if pa.types.is_floating(kind):
        return pa.array(values.astype(kind.to_pandas_dtype()), from_pandas=True)
    return pa.array(values, kind)
