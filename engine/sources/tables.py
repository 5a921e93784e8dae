"""Tables of URLs and captions: Parquet, CSV and JSON lines, a bounded number of rows at a time."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.damage import Damage
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.escape import valid_text
from danqing.engine.core.plain_tables import plain_table, text_of
from danqing.engine.core.storage import arrow_source
from danqing.engine.core.table_names import CAPTION_COLUMNS, URL_COLUMNS
from danqing.engine.core.text_column import TextColumn
from danqing.engine.sources.inputs import Shard, files_in, find_files
from danqing.engine.sources.records import (
    CSV_SUFFIXES,
    JSON_SUFFIXES,
    TEXT_SUFFIXES,
    Lines,
    Record,
    detect_encoding,
    open_lines,
    read_csv,
    read_json,
)
from danqing.engine.sources.text import UTF8

SUFFIXES = (".parquet", *TEXT_SUFFIXES)
CHECKED_ROWS = 1000
"""Rows of each table that are read to check its columns before work begins."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the URL and the caption, and the encoding of CSV and JSON lines.

    Attributes:
        url, caption: the names.
        encoding: empty: detected for each table.
    """

    url: str = "url"
    caption: str = "caption"
    encoding: str = ""


@dataclass
class Part:
    """Consecutive rows of one file that are read and written together.

    Attributes:
        file: the file.
        first: position in the file of the part's first row.
        table: the rows with all columns as read; every cell of a row that cannot be read is null.
        urls, captions: texts of `table`'s rows; null on the host where the cell is missing.
        has_caption: bool (rows,), whether the caption's cell is not missing.
        errors: row of the part → what is wrong with it.
        bytes: the part's share of the file's size, for the progress bar.
    """

    file: Shard
    first: int
    table: pa.Table
    urls: TextColumn
    captions: TextColumn
    has_caption: np.ndarray
    errors: dict[int, str]
    bytes: int

    def __len__(self) -> int:
        return len(self.urls)

    def head(self, rows: int) -> Part:
        """Returns the first rows of the part."""
        if rows == len(self):
            return self
        return replace(
            self,
            table=self.table.slice(0, rows),
            urls=self.urls[:rows],
            captions=self.captions[:rows],
            has_caption=self.has_caption[:rows],
            errors={row: problem for row, problem in self.errors.items() if row < rows},
            bytes=self.bytes * rows // len(self),
        )


@dataclass
class _Rows:
    table: pa.Table
    bytes: int
    errors: dict[int, str] = field(default_factory=dict)


def find_tables(inputs: Iterable[str], follow_links: bool = False, damage: list[Damage] | None = None) -> list[Shard]:
    """Finds the tables of all inputs (files, folders, globs, brace ranges), in the given order.

    Args:
        inputs: arguments of the command line.
        follow_links: also read links in an input folder to files outside it.
        damage: receives entries of folders that are not read.

    Raises:
        DanqingError: as `find_files`; or a folder holds no table.
    """
    kinds, damage = ", ".join(SUFFIXES), [] if damage is None else damage

    def in_folder(folder: Path) -> list[Path]:
        unread = len(damage)
        tables = files_in(folder, SUFFIXES, follow_links, damage)
        if not tables and len(damage) == unread:
            raise DanqingError(f"{folder}: a folder without tables ({kinds})")
        return tables

    paths = find_files(inputs, SUFFIXES, f"not a table this command reads ({kinds})", in_folder, damage)
    return [Shard(number, str(path), path, path.stat().st_size) for number, path in enumerate(paths)]


def choose_columns(files: Sequence[Shard], columns: Columns) -> Columns:
    """Replaces empty names by the first of `URL_COLUMNS` and `CAPTION_COLUMNS` that the first table has."""
    if not files or (columns.url and columns.caption):
        return columns
    return name_columns(_column_names(files[0], columns), columns)


def name_columns(there: Sequence[str], columns: Columns) -> Columns:
    """Replaces empty names by the first of `URL_COLUMNS` and `CAPTION_COLUMNS` that is there."""

    def choose(names: Sequence[str], default: str) -> str:
        return next((name for wanted in names for name in there if name.lower() == wanted), default)

    url = columns.url or choose(URL_COLUMNS, Columns.url)
    caption = columns.caption or choose(CAPTION_COLUMNS, Columns.caption)
    return replace(columns, url=url, caption=caption)


def _column_names(file: Shard, columns: Columns) -> list[str]:
    if file.path.suffix != ".parquet":
        parts = _text(file, columns, CHECKED_ROWS)
        return next((part.table.column_names for part in parts if len(part.errors) < len(part.table)), [])
    with _reading_parquet(file):
        return list(pq.read_schema(arrow_source(file.path)).names)


def encodings(files: Iterable[Path]) -> Counter[str]:
    """Counts the encodings of CSV and JSON lines files, as detected; UTF-8 is left out."""
    found = Counter(detect_encoding(path) for path in files if path.name.endswith(TEXT_SUFFIXES))
    del found[UTF8]
    return found


def check_tables(files: Iterable[Shard], columns: Columns) -> None:
    """Reads each table's first rows, so that a wrong column name is an error before work begins.

    Raises:
        DanqingError: as `read_parts`.
    """
    for file in files:
        next(read_parts(file, columns, CHECKED_ROWS), None)


def count_rows(file: Shard) -> int:
    """Counts the rows of a Parquet file; 0 for other tables, which must be read to count them.

    Raises:
        DanqingError: the file cannot be read.
    """
    if file.path.suffix != ".parquet":
        return 0
    with _reading_parquet(file):
        return int(pq.read_metadata(arrow_source(file.path)).num_rows)


def read_parts(file: Shard, columns: Columns, rows: int, first: int = 0) -> Iterator[Part]:
    """Reads a table in parts of `rows` rows; the last may be shorter. Every call gives the same parts.

    Args:
        file: the table.
        columns: names of the URL and the caption.
        rows: of a part.
        first: position of the first row that is read, at the beginning of a part; not 0 for Parquet only.

    Raises:
        DanqingError: the file cannot be read, or lacks a column; names file, columns and flag.
    """
    for part in _parquet(file, rows, first) if file.path.suffix == ".parquet" else _text(file, columns, rows):
        may_lack = _found_later(file, columns, part) if first == 0 else ()
        yield part_of(file, first, part.table, columns, part.errors, part.bytes, may_lack)
        first += len(part.table)


def _found_later(file: Shard, columns: Columns, head: _Rows) -> Collection[str]:
    """Returns the columns that the first part of JSON lines may lack: a later row has them, or no row can be read."""
    wanted = {columns.url, columns.caption}
    if not file.path.name.endswith(JSON_SUFFIXES):
        return ()
    if len(head.errors) < len(head.table) and wanted <= {*head.table.column_names}:
        return ()
    absent, is_readable = set(wanted), False
    with open_lines(file.path, columns.encoding) as (_, lines):
        for record, problem in read_json(lines):
            absent -= record.keys()
            is_readable = is_readable or problem is None
            if not absent:
                break
    return wanted - absent if is_readable else wanted


def part_of(
    file: Shard,
    first: int,
    table: pa.Table,
    columns: Columns,
    errors: dict[int, str] | None = None,
    size: int = 0,
    may_lack: Collection[str] = (),
) -> Part:
    """Makes a part of rows that are in memory.

    Args:
        file, first, table: see `Part`.
        columns: names of the URL and the caption.
        errors, size: see `Part.errors` and `Part.bytes`.
        may_lack: names of columns that the first part of a file may lack.

    Raises:
        DanqingError: the table lacks a column, or it holds no text.
    """
    table = plain_table(table)
    urls = _strings(file, table, columns.url, "--url-col", first == 0 and columns.url not in may_lack)
    captions = _strings(file, table, columns.caption, "--caption-col", first == 0 and columns.caption not in may_lack)
    has_caption = captions.arrow().is_valid().to_numpy(zero_copy_only=False)
    return Part(file, first, table, urls, captions, has_caption, errors or {}, size)


def _strings(file: Shard, table: pa.Table, name: str, flag: str, must_exist: bool) -> TextColumn:
    """Returns a text column; the file may store it as binary, large or dictionary-encoded text."""
    count = table.column_names.count(name)
    if count > 1:
        raise DanqingError(f"{file.path}: has {count} columns {name!r}; choose another with {flag}")
    if not count:
        if must_exist:
            raise DanqingError(
                f"{file.path}: no column {name!r}; choose one with {flag}. "
                f"The table has: {', '.join(table.column_names) or 'no columns'}"
            )
        # JSON lines may leave a field out where it has no value
        return TextColumn.of(pa.nulls(len(table), pa.large_string()))
    if (texts := text_of(table[name])) is None:
        held = table[name].type
        raise DanqingError(f"{file.path}: column {name!r} holds {held}, not text; choose another with {flag}")
    return TextColumn.of(texts)


def _parquet(file: Shard, rows: int, first: int) -> Iterator[_Rows]:
    # Pre-buffering keeps every byte that was read until the file is closed.
    with _reading_parquet(file), pq.ParquetFile(file.path, pre_buffer=False) as parquet:
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        begins = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        groups = range(max(int(np.searchsorted(begins, first, side="right")) - 1, 0), len(sizes))
        surplus = first - int(begins[groups.start])
        per_row = file.bytes / max(parquet.metadata.num_rows, 1)
        nothing = waiting = parquet.schema_arrow.empty_table()
        # Arrow's threads would decode columns at the same time, and each keep memory; the other cores have work.
        for batch in parquet.iter_batches(rows, row_groups=groups, use_threads=False):
            fresh = pa.Table.from_batches([batch.slice(surplus)])
            surplus -= min(surplus, len(batch))
            waiting = pa.concat_tables([waiting, fresh]) if len(waiting) else fresh
            if len(waiting) >= rows:
                yield _Rows(_in_chunks(waiting.slice(0, rows), begins - first), round(per_row * rows))
                first += rows
                # An empty slice would keep the memory of the table that it was cut from.
                waiting = waiting.slice(rows) if len(waiting) > rows else nothing
        if len(waiting):
            yield _Rows(_in_chunks(waiting, begins - first), round(per_row * len(waiting)))


def _in_chunks(table: pa.Table, ends: np.ndarray) -> pa.Table:
    """Gives a table chunks with the given ends, whatever row was read first: the pages of a written file follow them.

    Columns that have these chunks are not copied.
    """
    cuts = [0, *(end for end in ends.tolist() if 0 < end < len(table)), len(table)]
    return pa.concat_tables(table.slice(start, stop - start).combine_chunks() for start, stop in pairwise(cuts))


@contextmanager
def _reading_parquet(file: Shard) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as problem:
        raise DanqingError(f"{file.path}: cannot be read as Parquet: {problem}") from None


def _text(file: Shard, columns: Columns, rows: int) -> Iterator[_Rows]:
    with open_lines(file.path, columns.encoding) as (raw, lines):
        is_csv, position = file.path.name.endswith(CSV_SUFFIXES), 0
        parts = _csv_tables(file.path, lines, rows) if is_csv else _json_tables(lines, columns, rows)
        for table, errors in parts:
            before, position = position, raw.tell()
            if not table.column_names:  # no row can be read
                table = pa.table({name: pa.nulls(len(errors)) for name in (columns.url, columns.caption)})
            yield _Rows(table, position - before, errors)


def _json_tables(lines: Lines, columns: Columns, rows: int) -> Iterator[tuple[pa.Table, dict[int, str]]]:
    """Yields parts of JSON lines, each with the errors of its rows: row → what is wrong with it."""
    checked = _checked(_with_damage(read_json(lines), lines), lines, columns)
    while part := list(itertools.islice(checked, rows)):
        yield (
            _table([record for record, _ in part]),
            {row: text for row, (_, text) in enumerate(part) if text is not None},
        )


def _csv_tables(path: Path, lines: Lines, rows: int) -> Iterator[tuple[pa.Table, dict[int, str]]]:
    """Yields parts of CSV, whose values are all text, each with the errors of its rows: row → what is wrong with it."""
    waiting: list[Sequence[str | None]] = []
    errors: dict[int, str] = {}
    names: list[str] = []

    def take(count: int) -> tuple[pa.Table, dict[int, str]]:
        nonlocal errors
        part, found = waiting[:count], {row: text for row, text in errors.items() if row < count}
        del waiting[:count]
        errors = {row - count: text for row, text in errors.items() if row >= count}
        values = zip(*part, strict=True) if any(part) else ()
        return pa.table({name: _column(list(column)) for name, column in zip(names, values, strict=False)}), found

    for header, records, problem in read_csv(path, lines):
        names = header
        if problem is not None:
            errors[len(waiting)] = problem
        waiting += records
        while len(waiting) >= rows:
            yield take(rows)
    if lines.damage:
        errors[len(waiting)] = ": ".join(lines.damage)
        waiting.append([None] * len(names) if waiting else [])
    while waiting:
        yield take(rows)


def _with_damage(rows: Iterable[Record], lines: Lines) -> Iterator[Record]:
    """Adds a row with an error that names the place where the file is cut off."""
    yield from rows
    if lines.damage:
        yield {}, ": ".join(lines.damage)


def _checked(rows: Iterable[Record], lines: Lines, columns: Columns) -> Iterator[Record]:
    """Replaces cells of the two columns that are not text by None, and makes this the row's problem."""
    for record, problem in rows:
        for name in (columns.url, columns.caption):
            value = record.get(name)
            if not isinstance(value, str | None):
                problem = f"line {lines.start}: {name!r} is not text but {json.dumps(value)[:40]}"
                record[name] = None
        yield record, problem


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    return pa.table({name: _column([record.get(name) for record in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    """Converts values of one scalar type to a column of that type; lists, objects and mixed types to JSON text."""
    try:
        column = pa.array(values)
        if not pa.types.is_nested(column.type):
            return column
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        pass
    return pa.array([_as_text(value) for value in values], pa.string())


def _as_text(value: Any) -> str | None:
    if isinstance(value, str):
        return valid_text(value)
    return None if value is None else json.dumps(value)
