"""Notes on a whole run, for the end of a command: rows with errors, several engines, a criterion that drops all."""

from __future__ import annotations

from collections import Counter

from danqing.engine.decide.funnel import Funnel
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import scores_table
from danqing.engine.score.settling import describe_engines

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
    for shard in run.shards:
        if not run.scores_path(shard.number).exists():
            continue
        column = scores_table(run, shard.number, ["error"])["error"]
        rows += len(column)
        errors.update({entry["values"]: entry["counts"] for entry in column.drop_null().value_counts().to_pylist()})
    engines = [f"scored by several engines: {line}" for line in describe_engines(run.manifest.get("engines", {}))]
    return [*_error_notes(rows, errors), *engines, *(funnel_notes(funnel) if funnel else ())]


def funnel_notes(funnel: Funnel) -> list[str]:
    """Warns of a criterion that drops every row that reaches it."""
    return [
        f"warning: {line.criterion} drops {_all_rows(line.dropped)} it ({line.rule}); nothing is kept"
        for line in funnel.lines
        if line.dropped and not line.left
    ]


def _all_rows(rows: int) -> str:
    return "the only row that reaches" if rows == 1 else f"all {rows:,} rows that reach"


def _error_notes(rows: int, errors: Counter[str]) -> list[str]:
    if not (failed := errors.total()):
        return []
    counted = f"{failed:,} of {rows:,} rows have an error ({failed / rows:.1%})"
    if failed <= MAX_ERROR_SHARE * rows:
        return [f"{counted}; see the column error of scores/"]
    commonest, times = errors.most_common(1)[0]
    shown = commonest if len(commonest) <= MAX_ERROR_CHARACTERS else f"{commonest[: MAX_ERROR_CHARACTERS - 1]}…"
    return [f"warning: {counted}; {times:,} of them: {shown}"]
