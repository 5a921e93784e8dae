"""SELECT with tables of libcudf. Stand-ins over Arrow have the signatures of pylibcudf 26.10."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import danqing.engine.select.libcudf_tables
import danqing.engine.select.selection
from danqing.engine.core import libcudf
from danqing.engine.recipe.reading import Recipe
from danqing.engine.select.selection import select

GOOD = "公园的草地上有一只可爱的小猫在晒太阳"
CHUNK_ROWS = 3


class TypeId(IntEnum):
    INT32 = 3
    INT64 = 4
    STRING = 23


class DataType:
    def __init__(self, kind: TypeId) -> None:
        self.kind = kind

    def id(self) -> TypeId:
        return self.kind


class Column:
    """A column over an Arrow array; strings have their offsets as a child."""

    def __init__(
        self, data_type: DataType, size: int, data: Any, mask: Any, null_count: int, offset: int, children: list[Any]
    ) -> None:
        self.kind, self.rows, self.span, self.own, self.array = data_type, size, data, children, None
        assert mask is None and not null_count and not offset

    def to_array(self) -> pa.Array:
        if self.array is None:
            span = self.own[0].span
            offsets = pa.py_buffer(ctypes.string_at(span.ptr, span.size))
            data = pa.py_buffer(ctypes.string_at(self.span.ptr, self.span.size))
            kind = pa.LargeStringArray if self.own[0].kind.id() == TypeId.INT64 else pa.StringArray
            self.array = kind.from_buffers(self.rows, offsets, data).cast(pa.string())
        return self.array

    @staticmethod
    def from_arrow(obj: pa.Array, dtype: Any = None, stream: Any = None, mr: Any = None) -> Column:
        assert isinstance(obj, pa.Array) and stream is not None
        made = Column(DataType(TypeId.STRING), len(obj), None, None, 0, 0, [])
        made.array = obj
        return made

    def to_arrow(self, metadata: Any = None, stream: Any = None) -> pa.Array:
        return self.to_array()

    def size(self) -> int:
        return len(self.to_array())

    def null_count(self) -> int:
        return int(self.to_array().null_count)

    def offset(self) -> int:
        return int(self.to_array().offset)

    def data(self) -> Any:
        buffer = self.to_array().buffers()[2]
        return SimpleNamespace(ptr=buffer.address, size=buffer.size) if buffer and buffer.size else None

    def child(self, index: int) -> Any:
        buffer = self.to_array().buffers()[1]
        kind = DataType(TypeId.INT32)
        span = SimpleNamespace(ptr=buffer.address, size=4 * (len(self.to_array()) + self.offset() + 1))
        return SimpleNamespace(type=lambda: kind, data=lambda: span, offset=lambda: 0)


class Table:
    def __init__(self, columns: Sequence[Column], num_rows: int | None = None) -> None:
        self.own = tuple(columns)

    def columns(self) -> tuple[Column, ...]:
        return self.own

    def num_rows(self) -> int:
        return self.own[0].size()

    def map(self, function: Any) -> Table:
        return Table([Column.from_arrow(function(column.to_array()), None, "its own") for column in self.own])


class Reader:
    def __init__(self, options: Any, stream: Any, mr: Any, chunk_read_limit: int, pass_read_limit: int) -> None:
        rows = pq.read_table(options.path)[options.set_skip_rows_ :].combine_chunks()
        self.chunks = iter(rows.to_batches(CHUNK_ROWS))
        self.next = next(self.chunks, None)

    def has_next(self) -> bool:
        return self.next is not None

    def read_chunk(self) -> Any:
        batch, self.next = self.next, next(self.chunks, None)
        return SimpleNamespace(tbl=Table([Column.from_arrow(column, None, "its own") for column in batch.columns]))


class Builder(SimpleNamespace):
    """Sets every option that is called on it."""

    def __getattr__(self, name: str) -> Any:
        def set_option(value: Any) -> Builder:
            setattr(self, f"{name}_", value)
            return self

        return set_option

    def build(self) -> Builder:
        return self


class Named(SimpleNamespace):
    def set_name(self, name: str) -> Named:
        self.name = name
        return self

    def set_nullability(self, nullable: bool) -> Named:
        assert nullable
        return self


def write_parquet(options: Any, stream: Any = None) -> None:
    names = [column.name for column in options.metadata_.column_metadata]
    table = pa.table([column.to_array() for column in options.table.columns()], names=names)
    assert options.compression_ == "snappy"
    pq.write_table(table.replace_schema_metadata(options.key_value_metadata_[0]), options.path)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Makes SELECT read and write by the stand-ins; the list holds the tables it reads."""
    modules = {
        "": {"TypeId": TypeId, "DataType": DataType, "Column": Column, "Table": Table},
        ".concatenate": {"concatenate": lambda objects, stream: _joined(objects)},
        ".copying": {"slice": lambda table, ends: [table.map(lambda array: array[ends[0] : ends[1]])]},
        ".unary": {"is_valid": lambda column, stream: Column.from_arrow(column.to_array().is_valid(), None, stream)},
        ".stream_compaction": {
            "apply_boolean_mask": lambda table, mask, stream: table.map(lambda array: array.filter(mask.to_array()))
        },
        ".io": {},
        ".io.parquet": {
            "ChunkedParquetReader": Reader,
            "ParquetReaderOptions": SimpleNamespace(builder=lambda source: Builder(path=source)),
            "ParquetWriterOptions": SimpleNamespace(builder=lambda sink, table: Builder(path=sink, table=table)),
            "write_parquet": write_parquet,
        },
        ".io.types": {
            "SourceInfo": lambda sources: sources[0],
            "SinkInfo": lambda sinks: sinks[0],
            "CompressionType": SimpleNamespace(SNAPPY="snappy"),
            "TableInputMetadata": lambda table: SimpleNamespace(column_metadata=[Named() for _ in table.columns()]),
        },
    }
    for name, content in modules.items():
        module = ModuleType(f"pylibcudf{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules["pylibcudf"].io = sys.modules["pylibcudf.io"]  # type: ignore[attr-defined]
    sys.modules["pylibcudf.io"].parquet = sys.modules["pylibcudf.io.parquet"]  # type: ignore[attr-defined]
    read: list[Any] = []
    tables = danqing.engine.select.libcudf_tables
    monkeypatch.setattr(tables, "serves", lambda device: True)
    monkeypatch.setattr(tables, "stream_of", lambda device: "the thread's")
    monkeypatch.setattr(libcudf, "buffers_of", _buffers_of)
    monkeypatch.setattr(tables, "column_of", lambda text: Column.from_arrow(text.arrow().cast(pa.string()), None, ""))
    real = tables._tables
    monkeypatch.setattr(tables, "_tables", lambda *given: (read.append(table) or table for table in real(*given)))  # type: ignore[func-returns-value]
    return read


def _joined(tables: Sequence[Table]) -> Table:
    columns = zip(*(table.columns() for table in tables), strict=True)
    return Table(
        [Column.from_arrow(pa.concat_arrays([part.to_array() for part in parts]), None, "") for parts in columns]
    )


def _buffers_of(column: Column, owner: Any) -> tuple[np.ndarray, np.ndarray]:
    first, data = column.offset(), column.to_array().buffers()[2]
    offsets = np.frombuffer(column.to_array().buffers()[1], np.int32)[first : first + column.size() + 1]
    return offsets, np.frombuffer(data or b"", np.uint8)


def test_libcudf_reads_and_writes_what_arrow_does(
    on_device: list[Any], plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(danqing.engine.select.selection, "PART_ROWS", 5)
    rows = 12
    urls = [None if row == 4 else "ftp://x" if row == 5 else f"https://x.example/{row}" for row in range(rows)]
    captions = [None if row == 3 else "小猫" if row % 4 == 2 else f"{GOOD}{row}" for row in range(rows)]
    table: dict[str, Any] = {
        "URL": urls,
        "note": pa.array([b"a\xe9" if row % 3 else None for row in range(rows)]).view(pa.string()),
        "text_clean": ["mine"] * rows,
        "n": range(rows),
        "uid": list("0123456789ab"),
    }
    latin = [GOOD.encode() + b"\xff" if row == 7 else text and text.encode() for row, text in enumerate(captions)]
    table["TEXT"] = pa.array(latin).view(pa.string())
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(table), path)
    nested = tmp_path / "u.parquet"  # left to Arrow
    pq.write_table(pa.table({"URL": urls, "TEXT": captions, "tags": [["a"]] * rows}), nested)
    ours = select([str(path), str(nested)], tmp_path / "ours", plain_recipe)
    assert [len(part) for part in on_device] == [5, 5, 2]
    for name in ("funnel.json", "verdicts/00001.parquet", "verdicts/00002.parquet"):
        (tmp_path / "ours" / name).unlink()
    assert select([str(path), str(nested)], tmp_path / "ours", plain_recipe).funnel == ours.funnel
    assert [len(part) for part in on_device[3:]] == [5, 2]  # the first part is not read again
    monkeypatch.setattr(danqing.engine.select.libcudf_tables, "serves", lambda device: False)
    theirs = select([str(path), str(nested)], tmp_path / "theirs", plain_recipe)
    assert ours.funnel == theirs.funnel and 0 < ours.funnel.kept < rows * 2
    for file in (file for kind in ("urls", "verdicts") for file in sorted((tmp_path / "ours" / kind).iterdir())):
        written = pq.read_table(file)
        expected = pq.read_table(tmp_path / "theirs" / file.relative_to(tmp_path / "ours"))
        assert written.equals(expected), file
        assert written.schema.metadata == expected.schema.metadata
    written = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "ours" / "verdicts").iterdir()))
    assert written["caption"][7].as_py() == f"{GOOD}\ufffd"  # not UTF-8
    again = select([str(tmp_path / "ours" / "urls")], tmp_path / "again", plain_recipe)  # finds the mark of a selection
    assert "input_text_clean" in pq.read_schema(next(again.urls.iterdir())).names
