"""Tables on a GPU: libcudf reads Parquet there and writes the kept rows and the verdicts.

Text goes from the file to the device once, and only verdicts and scores are copied. Files with columns of other types
than numbers, booleans and strings are read and written by Arrow, which keeps every type as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit
from danqing.engine.core.libcudf import column_of, rows_of, serves, stream_of
from danqing.engine.core.plain_tables import plain_column
from danqing.engine.core.text_column import TextColumn
from danqing.engine.sources import Shard
from danqing.engine.sources.tables import Columns, Part, count_rows, read_parts
from danqing.kernels.text.utf8 import has_malformed

CHUNK_BYTES = 256 << 20
"""Bytes of columns that are decoded at once, and of pages that are decompressed for them."""
TYPES = (
    pa.types.is_boolean, pa.types.is_integer, pa.types.is_float32, pa.types.is_float64, pa.types.is_string,
)  # fmt: skip


@dataclass(frozen=True)
class DeviceTable:
    """Rows in the memory of a GPU.

    Attributes:
        rows: a pylibcudf table.
        schema: names and types of its columns, and the file's metadata.
    """

    rows: Any
    schema: pa.Schema

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self.schema.names)

    def __len__(self) -> int:
        return int(self.rows.num_rows())

    def __getitem__(self, name: str) -> Any:
        """Returns a pylibcudf column."""
        return self.rows.columns()[self.schema.names.index(name)]

    def slice(self, start: int, rows: int) -> DeviceTable:
        """Returns consecutive rows, without a copy of them."""
        from pylibcudf.copying import slice as slice_rows

        return replace(self, rows=slice_rows(self.rows, [start, start + rows])[0])


def read(file: Shard, columns: Columns, rows: int, device: Device, first: int = 0) -> Iterator[Part]:
    """Reads a table in parts as `read_parts` does, on the GPU if libcudf can."""
    if serves(device) and file.path.suffix == ".parquet" and _is_flat(file.path, columns):
        return _read(file, columns, rows, device, first)
    return read_parts(file, columns, rows, first)


def _is_flat(path: Path, columns: Columns) -> bool:
    """Whether libcudf writes all columns of a file as they are, and reads text in the two that are judged."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return False  # Arrow's reader names the problem
    judged = all(schema.get_all_field_indices(name) for name in (columns.url, columns.caption))
    texts = {schema.field(name).type for name in (columns.url, columns.caption)} if judged else set()
    is_plain = all(any(check(field.type) for check in TYPES) for field in schema)
    return texts == {pa.string()} and is_plain and len({*schema.names}) == len(schema)


def _read(file: Shard, columns: Columns, rows: int, device: Device, first: int) -> Iterator[Part]:
    file_rows = max(count_rows(file), 1)
    for table in _tables(file.path, rows, device, first):
        table = _valid_text(table, device)
        column, caption = table[columns.url], table[columns.caption]
        urls, captions = (TextColumn.made(rows_of(texts, texts), device) for texts in (column, caption))
        size = round(file.bytes * len(table) / file_rows)
        has_caption = _has_value(caption, device)
        device.wait()  # other threads use the part on their streams
        yield Part(file, first, table, urls, captions, has_caption, {}, size)
        first += len(table)


def _tables(path: Path, rows: int, device: Device, first: int) -> Iterator[DeviceTable]:
    """Yields the rows of a file from the row `first` on, `rows` at a time; the last table may be shorter."""
    from pylibcudf.concatenate import concatenate
    from pylibcudf.io.parquet import ChunkedParquetReader, ParquetReaderOptions
    from pylibcudf.io.types import SourceInfo

    schema, stream = pq.read_schema(path), stream_of(device)
    options = ParquetReaderOptions.builder(SourceInfo([os.fspath(path)])).build()
    options.set_skip_rows(first)
    waiting: DeviceTable | None = None
    try:
        reader = ChunkedParquetReader(options, stream, None, CHUNK_BYTES, CHUNK_BYTES)
        while reader.has_next():
            fresh = reader.read_chunk().tbl
            waiting = DeviceTable(concatenate([waiting.rows, fresh], stream) if waiting else fresh, schema)
            while len(waiting) >= rows:
                yield waiting.slice(0, rows)
                waiting = waiting.slice(rows, len(waiting) - rows)
    except RuntimeError as problem:
        raise DanqingError(f"{path}: cannot be read as Parquet: {problem}") from None
    if waiting and len(waiting):
        yield waiting


def _valid_text(table: DeviceTable, device: Device) -> DeviceTable:
    """Replaces what is not UTF-8 in columns of text by U+FFFD, as `plain_table` does; such columns are rare."""
    from pylibcudf import Column, Table

    stream, columns = stream_of(device), list(table.rows.columns())
    for position, field in enumerate(table.schema):
        column = columns[position]
        if pa.types.is_string(field.type) and has_malformed(device, rows_of(column, column)):
            valid = plain_column(pa.chunked_array([column.to_arrow(None, stream)])).combine_chunks()
            columns[position] = Column.from_arrow(valid, None, stream)
    return replace(table, rows=Table(columns))


def _has_value(column: Any, device: Device) -> np.ndarray:
    """bool (rows,), on the host: whether a column has a value."""
    from pylibcudf.unary import is_valid

    if not column.null_count():
        return np.ones(column.size(), bool)
    stream = stream_of(device)
    valid: np.ndarray = is_valid(column, stream).to_arrow(None, stream).to_numpy(zero_copy_only=False)
    return valid


def write_kept(
    path: Path,
    table: DeviceTable,
    names: Mapping[int, str],
    keep: np.ndarray,
    clean: tuple[str, TextColumn],
    metadata: Mapping[bytes, bytes],
    device: Device,
) -> None:
    """Writes the kept rows of a part.

    Args:
        path: the file.
        table: the part.
        names: position of a column in `table` → its name in the file, in order.
        keep: bool (rows,).
        clean: name and texts of a further column, of the kept rows.
        metadata: of the file.
        device: holds the rows.
    """
    from pylibcudf import Column, Table
    from pylibcudf.stream_compaction import apply_boolean_mask

    stream, columns = stream_of(device), table.rows.columns()
    mask = Column.from_arrow(pa.array(keep), None, stream)
    kept = apply_boolean_mask(Table([columns[position] for position in names]), mask, stream).columns()
    text = column_of(clean[1].strings(device))
    _write(path, [*names.values(), clean[0]], [*kept, text], metadata, device)


def write_verdicts(path: Path, columns: Mapping[str, Any], metadata: Mapping[bytes, bytes], device: Device) -> None:
    """Writes columns of equal length: Arrow arrays, which are copied to the device, and pylibcudf columns."""
    from pylibcudf import Column

    stream = stream_of(device)
    there = [
        Column.from_arrow(column, None, stream) if isinstance(column, pa.Array) else column
        for column in columns.values()
    ]
    _write(path, list(columns), there, metadata, device)


def _write(
    path: Path, names: Sequence[str], columns: Sequence[Any], metadata: Mapping[bytes, bytes], device: Device
) -> None:
    from pylibcudf import Table
    from pylibcudf.io import parquet
    from pylibcudf.io.types import CompressionType, SinkInfo, TableInputMetadata

    table = Table(columns)
    described = TableInputMetadata(table)
    for column, name in zip(described.column_metadata, names, strict=True):
        column.set_name(name).set_nullability(True)
    with commit(path) as file:
        builder = parquet.ParquetWriterOptions.builder(SinkInfo([str(file.name)]), table).metadata(described)
        builder = builder.compression(CompressionType.SNAPPY)
        builder = builder.key_value_metadata([{key.decode(): value.decode() for key, value in metadata.items()}])
        parquet.write_parquet(builder.build(), stream_of(device))
        device.wait()
