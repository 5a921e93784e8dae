"""Parquet files of pairs: a picture is bytes, Hugging Face's {bytes, path}, or the name of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.logs import log
from danqing.engine.core.storage import arrow_source
from danqing.engine.sources.base import Source
from danqing.engine.sources.inputs import Shard
from danqing.engine.sources.sample import Layout, Sample, choose_column, from_record
from danqing.engine.sources.text import Decoder, SampleError

BATCH_ROWS = 64
"""Rows, and thus pictures, in memory at a time."""


class Parquet(Source):
    """Whole row groups of a Parquet file. If a row group cannot be read, only its rows fail."""

    suffixes = (".parquet",)
    is_table = True

    def __init__(self, shard: Shard, layout: Layout) -> None:
        self.shard, self.layout = shard, layout
        with _open_footer(shard.path) as file:
            names = file.schema_arrow.names
            self.image = choose_column(shard.path, names, layout.image_keys, "picture", "--image-key")
            self.caption = choose_column(shard.path, names, layout.caption_keys, "caption", "--caption-key")
            kind = file.schema_arrow.field(self.image).type
            if not _holds_pictures(kind):
                raise DanqingError(
                    f"{shard.path}: column {self.image!r} holds {kind}; a picture is bytes, {{bytes, path}} or a "
                    "file's name. Choose another with --image-key."
                )
            binary = {field.name for field in file.schema_arrow if _is_binary(field.type)}
            self.left_out = sorted(binary - {self.image, self.caption})
            self.columns = [name for name in names if name not in self.left_out]
            nested = {field.name for field in file.schema_arrow if _has_binary(field.type)}
            self.not_carried = sorted(nested - {self.image, self.caption})
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        first = 0
        self.groups: list[tuple[int, int, int]] = []
        """Row groups of the shard: number, first row in the file, rows."""
        for group, rows in enumerate(sizes):
            if shard.first <= first and (shard.rows is None or first < shard.first + shard.rows):
                self.groups.append((group, first, rows))
            first += rows

    @classmethod
    def pieces(cls, path: Path, layout: Layout) -> list[tuple[int, int]]:
        """Rows and compressed bytes of every row group."""
        with _open_footer(path) as file:
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        return [(g.num_rows, sum(g.column(c).total_compressed_size for c in range(g.num_columns))) for g in groups]

    def __len__(self) -> int:
        return sum(rows for _, _, rows in self.groups)

    def __iter__(self) -> Iterator[Sample]:
        folder, follow = self.shard.path.parent, self.layout.follow_links
        decoder = self.decoder(self.layout.encoding)
        if self.not_carried:
            log.warning("%s: not carried, since they hold bytes: %s", self.shard.path, ", ".join(self.not_carried))
        with _open(self.shard.path) as file:
            for group, first, rows in self.groups:
                read = 0
                try:
                    for batch in file.iter_batches(BATCH_ROWS, [group], self.columns):
                        for record, problem in _records(batch, decoder):
                            key = self.shard.key(first + read - self.shard.first)
                            read += 1
                            sample = from_record(record, self.image, self.caption, folder, key, follow)
                            sample.error = problem or sample.error
                            yield sample
                except (pa.ArrowException, OSError) as problem:
                    for row in range(first + read, first + rows):
                        message = f"{self.shard.path}: row group {group} is broken: {problem}"
                        yield Sample(self.shard.key(row - self.shard.first), b"", "", "", error=message)


def _records(batch: pa.RecordBatch, decoder: Decoder) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yields the rows, each with a description of what is wrong with it or None.

    Arrow does not check that text is UTF-8; a table in another encoding is decoded cell by cell. Times that Python does
    not have (after the year 9999, nanoseconds) are read as text.
    """
    batch = _in_microseconds(batch)
    try:
        yield from ((record, None) for record in batch.to_pylist())
        return
    except (ValueError, OverflowError):
        pass
    for row in range(len(batch)):
        record: dict[str, Any] = {}
        problem = None
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            try:
                value = (column.cast(pa.large_binary()) if text else column)[row].as_py()
                record[name] = decoder(value) if text and value is not None else value
            except (SampleError, UnicodeDecodeError, pa.ArrowException) as reason:
                record[name], problem = None, f"column {name!r}: {reason}"
            except (ValueError, OverflowError):
                record[name] = column.cast(_with_times(column.type, _as_text))[row].as_py()
        yield record, problem


def _in_microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Casts columns of nanoseconds to microseconds, or to text if a value has a fraction of a microsecond.

    Otherwise the values that Arrow makes of nanoseconds depend on whether pandas is installed.
    """
    columns = list(batch.columns)
    for position, column in enumerate(columns):
        kind = _with_times(column.type, _microseconds)
        if kind != column.type:
            try:
                columns[position] = column.cast(kind)
            except pa.ArrowInvalid:
                columns[position] = column.cast(_with_times(column.type, _as_text))
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _with_times(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Returns a type in which the types of times, also those of parts, are changed."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_times(field.type, change)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_with_times(kind.key_type, change), _with_times(kind.item_type, change))
    if pa.types.is_list(kind):
        return pa.list_(_with_times(kind.value_type, change))
    if pa.types.is_large_list(kind):
        return pa.large_list(_with_times(kind.value_type, change))
    return change(kind) if pa.types.is_temporal(kind) else kind


def _microseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    return {pa.time64("ns"): pa.time64("us"), pa.duration("ns"): pa.duration("us")}.get(kind, kind)


def _as_text(kind: pa.DataType) -> pa.DataType:
    return pa.string()


def _open_footer(path: Path) -> pq.ParquetFile:
    return _open(path, arrow_source(path))


def _open(path: Path, file: Path | pa.NativeFile | None = None) -> pq.ParquetFile:
    try:
        # Pre-buffering keeps the whole file in memory.
        opened = pq.ParquetFile(path if file is None else file, pre_buffer=False)
        opened.schema_arrow.names  # noqa: B018  # raises if a name is not UTF-8
        return opened
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise DanqingError(f"{path}: cannot be read as Parquet: {problem}") from None


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    sized = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return sized or kind == pa.binary_view()


def _has_binary(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes, or have parts that are."""
    return _is_binary(kind) or any(_has_binary(kind.field(index).type) for index in range(kind.num_fields))


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return "bytes" in {kind.field(index).name for index in range(kind.num_fields)}
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return _is_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()
