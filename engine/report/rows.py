"""The rows of a decided run for its report: one shard at a time, and a sample chosen by hash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danqing.engine.core.columns import COLUMNS
from danqing.engine.decide.uids import numbers_of
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import scores_schema, scores_table, verdicts_table

SAMPLE_ROWS = 100_000
"""Approximate number of rows of the sample; a run with fewer is used whole."""
DESCRIBED = (
    "url", "caption", "text_clean", "words", "content_word_share", "language", "width", "height", "shortest_edge",
    "aspect_ratio", "decode_format", "jpeg_quality", "text_perplexity", "feature_row",
)  # fmt: skip
"""Columns that are shown, or lead to what is shown, whatever the criteria are."""
VERDICT_COLUMNS = ("dropped_by", "group", "distance")
MIXERS = tuple(map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)))
"""Factors of the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""


@dataclass(frozen=True)
class Rows:
    """Rows of one shard.

    Attributes:
        shard: its number.
        table: their scores and verdicts.
        hash: uint64 (rows,), random but the same in every report.
        dropped_by: int64 (rows,), position of the criterion in the recipe, -1 for kept rows.
    """

    shard: int
    table: pa.Table
    hash: np.ndarray
    dropped_by: np.ndarray

    def numbers(self, column: str) -> np.ndarray:
        """float64 (rows,): a column's numbers, NaN where there is none or where the shard has no such column."""
        if column not in self.table.column_names:
            return np.full(len(self.table), np.nan)
        return numbers_in(self.table, column)


def numbers_in(table: pa.Table, column: str) -> np.ndarray:
    """float64 (rows,): the numbers of a column, NaN for null."""
    numbers: np.ndarray = table[column].cast(pa.float64()).to_numpy()
    return numbers


def hash_uids(uids: pa.ChunkedArray) -> np.ndarray:
    """Hashes uids, which the input may have numbered: uint64 (rows,)."""
    high, low = numbers_of(uids).T
    mixed = high * MIXERS[0] ^ low
    for shift, factor in ((30, MIXERS[1]), (27, MIXERS[2])):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor
    return mixed ^ (mixed >> np.uint64(31))


def hash_bound(size: int, rows: int) -> np.uint64:
    """The bound that the hashes of about `size` of `rows` rows do not exceed."""
    return np.uint64(min(size * 2**64 // max(rows, 1), 2**64 - 1))


def read_rows(run: Run, recipe: Recipe, columns: Iterable[str]) -> Iterator[Rows]:
    """Yields the rows of each shard.

    Args:
        run: a decided run.
        recipe: the one it was decided with.
        columns: of the scores, in addition to `uid`; those that a shard does not have are left out.
    """
    names = pa.array([criterion.name for criterion in recipe.criteria], pa.string())
    wanted = dict.fromkeys(["uid", *columns])
    for shard in run.shards:
        there = set(scores_schema(run, shard.number).names)
        table = scores_table(run, shard.number, [name for name in wanted if name in there])
        verdicts = verdicts_table(run, shard.number, list(VERDICT_COLUMNS))
        for name in VERDICT_COLUMNS:
            table = table.append_column(name, verdicts[name])
        dropped_by = pc.index_in(table["dropped_by"], value_set=names).fill_null(-1).to_numpy().astype(np.int64)
        yield Rows(shard.number, table, hash_uids(table["uid"]), dropped_by)


@dataclass(frozen=True)
class Sample:
    """Rows whose hash is below a bound, which are a random sample.

    Attributes:
        rows: number of rows of the run.
        table: the sample's scores and verdicts, and `shard_number`, the number of each row's shard.
        kept: boolean (sample rows,).
    """

    rows: int
    table: pa.Table
    kept: np.ndarray

    @property
    def is_whole(self) -> bool:
        """Whether it is all rows."""
        return len(self.table) == self.rows

    def numbers(self, column: str, kept: bool = False) -> np.ndarray:
        """float64 (n,): a column's finite numbers, of all rows or of the kept ones; empty without the column."""
        if column not in self.table.column_names:
            return np.empty(0)
        values = numbers_in(self.table, column)
        values = values[self.kept] if kept else values
        return values[np.isfinite(values)]

    def texts(self, column: str, kept: bool = False) -> list[str]:
        """The texts of a column that are not null, of all rows or of the kept ones."""
        if column not in self.table.column_names:
            return []
        values = self.table[column].filter(pa.array(self.kept)) if kept else self.table[column]
        return [str(value) for value in values.drop_null().to_pylist()]


def draw_sample(run: Run, recipe: Recipe, rows: int, size: int = SAMPLE_ROWS) -> Sample:
    """Draws the rows with the lowest hashes, about `size` of them.

    Args:
        run, recipe: see `read_rows`.
        rows: number of rows of the run.
        size: approximate number of rows.
    """
    bound = hash_bound(size, rows)
    columns = [*DESCRIBED, *recipe.columns]
    tables = []
    for part in read_rows(run, recipe, columns):
        chosen = part.table.filter(pa.array(part.hash <= bound)) if rows > size else part.table
        shard = pa.array(np.full(len(chosen), part.shard, np.int32))
        tables.append(chosen.drop_columns("group").append_column("shard_number", shard))
    table = pa.concat_tables(tables, promote_options="default") if tables else pa.table({"dropped_by": pa.nulls(0)})
    return Sample(rows, table, table["dropped_by"].is_null().to_numpy(zero_copy_only=False))


def units_of(column: str) -> str:
    """A column's name and unit, for an axis."""
    known = COLUMNS.get(column)
    return f"{column} ({known.unit})" if known and known.unit and known.unit != column else column


def are_integers(values: np.ndarray, column: str = "") -> bool:
    """Whether all values are integers, and the column does not hold shares."""
    known = COLUMNS.get(column)
    if known and known.range == (0, 1) and pa.types.is_floating(known.type):
        return False
    return bool(np.all(values == np.floor(values)))


def is_flag(column: str) -> bool:
    """Whether a column holds 0 or 1."""
    known = COLUMNS.get(column)
    return bool(known and known.range == (0, 1) and not pa.types.is_floating(known.type))
