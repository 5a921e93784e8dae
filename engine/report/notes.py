"""Notes on a whole run, for the end of a command: rows with errors, several engines, a criterion that drops all."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping

import pyarrow.parquet as pq

from danqing.engine.decide.funnel import Funnel
from danqing.engine.run.folder import Run
from danqing.engine.score.ledger import ENGINES

MAX_ERROR_SHARE = 0.05
"""Share of rows with an error above which the note is a warning."""
MAX_ERROR_CHARACTERS = 120


def run_notes(run: Run, funnel: Funnel | None = None) -> list[str]:
    """Returns one line per note; those that begin with `warning: ` say that the result is probably not wanted.

    Args:
        run: its scored shards are counted.
        funnel: of its verdicts; None if it has none.
    """
    rows, errors = 0, Counter[str]()
    scored_by: dict[str, Counter[str]] = defaultdict(Counter)
    for shard in run.shards:
        if not run.scores_path(shard.number).exists():
            continue
        table = pq.read_table(run.scores_path(shard.number), columns=["error"])
        for role, digest in json.loads((table.schema.metadata or {}).get(ENGINES, b"{}")).items():
            scored_by[role][digest] += 1
        column = table["error"]
        rows += len(column)
        errors.update({entry["values"]: entry["counts"] for entry in column.drop_null().value_counts().to_pylist()})
    return [*_error_notes(rows, errors), *_engine_notes(scored_by), *(funnel_notes(funnel) if funnel else ())]


def funnel_notes(funnel: Funnel) -> list[str]:
    """Warns of a criterion that drops every row that reaches it."""
    return [
        f"warning: {line.criterion} drops all {line.dropped:,} rows that reach it ({line.rule}); nothing is kept"
        for line in funnel.lines
        if line.dropped and not line.left
    ]


def _engine_notes(scored_by: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Names the models and engines of a role, with the number of shards that each has scored, if there are several."""
    return [
        f"{role} was scored by several engines: "
        + ", ".join(f"{digest[:12]} ({shards:,} shards)" for digest, shards in sorted(counts.items()))
        + "; the metadata of each file in scores/ names its own"
        for role, counts in sorted(scored_by.items())
        if len(counts) > 1
    ]


def _error_notes(rows: int, errors: Counter[str]) -> list[str]:
    if not (failed := errors.total()):
        return []
    counted = f"{failed:,} of {rows:,} rows have an error ({failed / rows:.1%})"
    if failed <= MAX_ERROR_SHARE * rows:
        return [f"{counted}; see the column error of scores/"]
    commonest, times = errors.most_common(1)[0]
    shown = commonest if len(commonest) <= MAX_ERROR_CHARACTERS else f"{commonest[: MAX_ERROR_CHARACTERS - 1]}…"
    return [f"warning: {counted}; {times:,} of them: {shown}"]
