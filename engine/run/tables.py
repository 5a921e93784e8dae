"""Reads the tables of a run; a damaged or missing file is an error that names the file and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.errors import DanqingError
from danqing.engine.run.folder import Run

SCORE_AGAIN = "run `danqing score` or `danqing curate` again with the same inputs"
"""Remedy for damaged scores and features: only the shards without them are scored."""


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Reads one file of a run in a `with` block.

    Args:
        path: the file, or a merged run's link to a file of one of its parts.
        remedy: makes the file again when it has been deleted.

    Raises:
        DanqingError: the file is missing or damaged, or a link leads to no file; names it and the remedy.
    """
    try:
        yield
    except FileNotFoundError:
        if path.is_symlink():
            target = path.resolve()
            folder = target.parents[1]
            problem = f"{target} is missing" if folder.exists() else f"the folder {folder} is missing"
            raise DanqingError(
                f"{path}: {problem}, which this run was merged from; restore it, or merge the runs again"
            ) from None
        raise DanqingError(f"{path}: missing; {remedy}") from None
    except PermissionError:  # the command line names the file
        raise
    except (pa.ArrowException, OSError, ValueError, EOFError) as problem:
        text = " ".join(str(problem).split())
        raise DanqingError(f"{path.resolve()}: damaged ({text}); delete it and {remedy}") from None


def decide_again(run: Run) -> str:
    """Remedy for damaged verdicts and a damaged funnel."""
    return f"run `{run.decide_command}`"


def scores_table(run: Run, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the scores of a shard.

    Args:
        run: the run.
        number: of the shard.
        columns: the columns to read; None for all.
    """
    with reading(run.scores_path(number), SCORE_AGAIN):
        return pq.read_table(run.scores_path(number), columns=columns)


def scores_schema(run: Run, number: int) -> pa.Schema:
    """Reads the schema of a shard's scores."""
    with reading(run.scores_path(number), SCORE_AGAIN):
        return pq.read_schema(run.scores_path(number))


def verdicts_table(run: Run, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the verdicts of a shard; the arguments are those of `scores_table`."""
    with reading(run.verdicts_path(number), decide_again(run)):
        return pq.read_table(run.verdicts_path(number), columns=columns)
