"""The recaptions in a run's folder: their table, what made them, and whether they are those of the verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.columns import ANSWERED
from danqing.engine.run.folder import RECAPTIONED, Run
from danqing.engine.run.tables import reading

ALIGNMENT_DISTANCE, RECAPTION_ALIGNMENT = "alignment_distance", "recaption_alignment"
"""Columns of the alignment: L2 distance of picture and caption in the scores, cosine in recaptions and output."""
IDENTITY = b"danqing.recaption"
"""Metadata of a file: JSON of what its answers depend on (`engine.stages.vlm.chat.Question.identity`)."""
EMPTY = pa.schema([(column.name, column.type) for column in ANSWERED]).empty_table()


def recaption_again(run: Run) -> str:
    """Remedy for damaged recaptions."""
    return f"run `danqing recaption {run.folder}`"


def are_current(run: Run, verdicts: str) -> bool:
    """Whether all pairs that the verdicts keep have recaptions; `verdicts` is their digest."""
    return bool(run.manifest.get(RECAPTIONED, {}).get("verdicts") == verdicts)


def recaptions_table(run: Run, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the recaptions of a shard, in the order of `row`; without a file, an empty table."""
    path = run.recaptions_path(number)
    if not path.exists():
        return EMPTY.select([name for name in columns or EMPTY.column_names if name in EMPTY.column_names])
    with reading(path, recaption_again(run)):
        names = pq.read_schema(path).names
        return pq.read_table(path, columns=None if columns is None else [name for name in columns if name in names])


def identity_of(run: Run, number: int) -> Mapping[str, Any] | None:
    """The model, prompt and limits that a shard's recaptions depend on; None without a file."""
    path = run.recaptions_path(number)
    if not path.exists():
        return None
    with reading(path, recaption_again(run)):
        found: Mapping[str, Any] = json.loads((pq.read_schema(path).metadata or {}).get(IDENTITY, b"{}"))
        return found
