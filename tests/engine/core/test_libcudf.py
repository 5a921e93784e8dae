"""Rows of text taken and joined by libcudf. Stand-ins replace CuPy and pylibcudf 26.10, whose signatures they have."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from enum import IntEnum
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from danqing.engine.core import libcudf
from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings
from danqing.engine.core.text_column import TextColumn
from danqing.engine.stages.patterns import open_counter
from tests.strict import MockLibrary, OnDevice

TEXTS = ["一只橘猫", "", "窗台 a", "😀", "b" * 99, ""]
STREAM = SimpleNamespace(ptr=7, synchronize=lambda: None)


class TypeId(IntEnum):
    INT32 = 3
    INT64 = 4
    STRING = 23


class OutOfBoundsPolicy(IntEnum):
    NULLIFY = 0
    DONT_CHECK = 1


class DataType:
    def __init__(self, id: TypeId, scale: int = 0) -> None:
        self.kind = id

    def id(self) -> TypeId:
        return self.kind


class Column:
    def __init__(
        self,
        data_type: DataType,
        size: int,
        data: Any,
        mask: Any,
        null_count: int,
        offset: int,
        children: Sequence[Column],
        validate: bool = True,
    ) -> None:
        assert data is None or (isinstance(data.ptr, int) and isinstance(data.size, int))
        assert mask is None and null_count == 0
        self.parts = data_type, size, data, offset, children

    def type(self) -> DataType:
        return self.parts[0]

    def size(self) -> int:
        return self.parts[1]

    def data(self) -> Any:
        return self.parts[2]

    def offset(self) -> int:
        return self.parts[3]

    def child(self, index: int) -> Column:
        return self.parts[4][index]

    def numbers(self) -> np.ndarray:
        kind = np.int64 if self.type().id() == TypeId.INT64 else np.int32
        return memory(self.data(), np.dtype(kind))[self.offset() : self.offset() + self.size()]

    def texts(self) -> list[str]:
        """The rows, as libcudf finds them: without an offset, the bytes of a column begin at 0."""
        assert self.type().id() == TypeId.STRING
        begins, data = self.child(0).numbers().tolist(), memory(self.data(), np.dtype(np.uint8)).tobytes()
        assert len(begins) == self.size() + 1 and begins[0] == self.offset() == 0
        return [data[a:b].decode() for a, b in pairwise(begins)]


class Table:
    def __init__(self, columns: Sequence[Column], num_rows: int | None = None) -> None:
        self.held = tuple(columns)

    def columns(self) -> tuple[Column, ...]:
        return self.held


def memory(span: Any, kind: np.dtype) -> np.ndarray:
    if span is None or not span.size:
        return np.empty(0, kind)
    return np.frombuffer((ctypes.c_uint8 * span.size).from_address(span.ptr), kind)


def made(texts: list[str]) -> Column:
    """A column as libcudf makes it: 32-bit offsets, and no buffers for no rows."""
    if not texts:
        return Column(DataType(TypeId.STRING), 0, None, None, 0, 0, [])
    _, offsets, data = pa.array(texts, pa.string()).buffers()
    spans = [SimpleNamespace(ptr=part.address, size=part.size, owner=part) for part in (offsets, data)]
    spans[0].size = 4 * (len(texts) + 1)
    spans[1].size = sum(len(text.encode()) for text in texts)
    child = Column(DataType(TypeId.INT32), len(texts) + 1, spans[0], None, 0, 0, [])
    return Column(DataType(TypeId.STRING), len(texts), spans[1], None, 0, 0, [child])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Installs pylibcudf's stand-in; returns the names of the functions that are called."""
    called: list[str] = []

    def book(name: str, stream: Any) -> None:
        assert stream.__cuda_stream__() == (0, STREAM.ptr) and stream.owner is STREAM
        called.append(name)

    def gather(
        source_table: Table, gather_map: Column, bounds_policy: OutOfBoundsPolicy, stream: Any = None, mr: Any = None
    ) -> Table:
        assert bounds_policy is OutOfBoundsPolicy.DONT_CHECK
        book("gather", stream)
        texts = [column.texts() for column in source_table.columns()]
        return Table([made([rows[place] for place in gather_map.numbers()]) for rows in texts])

    def concatenate(objects: Sequence[Column], stream: Any = None, mr: Any = None) -> Column:
        book("concatenate", stream)
        return made([text for column in objects for text in column.texts()])

    def count_re(input: Column, prog: re.Pattern[str], stream: Any = None, mr: Any = None) -> Column:
        book("count_re", stream)
        counts = np.array([len(prog.findall(text)) for text in input.texts()], np.int32)
        span = SimpleNamespace(ptr=counts.ctypes.data, size=counts.nbytes, owner=counts)
        return Column(DataType(TypeId.INT32), len(counts), span, None, 0, 0, [])

    class RegexProgram:
        @staticmethod
        def create(pattern: str, flags: int) -> re.Pattern[str]:
            assert flags == 0
            return re.compile(pattern)

    for name, content in {
        "pylibcudf": {"Column": Column, "DataType": DataType, "TypeId": TypeId, "Table": Table},
        "pylibcudf.copying": {"OutOfBoundsPolicy": OutOfBoundsPolicy, "gather": gather},
        "pylibcudf.concatenate": {"concatenate": concatenate},
        "pylibcudf.strings.contains": {"count_re": count_re},
        "pylibcudf.strings.regex_flags": {"RegexFlags": SimpleNamespace(DEFAULT=0)},
        "pylibcudf.strings.regex_program": {"RegexProgram": RegexProgram},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    monkeypatch.setattr(libcudf, "_is_installed", lambda: True)
    return called


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    library: Any = MockLibrary(np)
    kept: list[Any] = []

    def unowned(ptr: int, size: int, owner: Any) -> SimpleNamespace:
        kept.append(owner)
        return SimpleNamespace(ptr=ptr, size=size)

    library.cuda = SimpleNamespace(
        Device=lambda number: nullcontext(),
        Stream=lambda non_blocking: nullcontext(STREAM),
        get_current_stream=lambda: STREAM,
        UnownedMemory=unowned,
        MemoryPointer=lambda memory, offset: memory,
    )
    library.ndarray = lambda size, kind, pointer: memory(pointer, kind)[:size].view(OnDevice)
    monkeypatch.setitem(sys.modules, "cupy", library)
    with ThreadPoolExecutor(1) as pool:
        device = Device("cuda", 1, pool, library)
        with device.entered():
            yield device


def host(strings: Strings, device: Device) -> list[str]:
    assert strings.offsets.dtype == np.int64 and strings.size == int(strings.offsets[-1] - strings.offsets[0])
    texts: list[str] = strings.on_host(device).arrow().to_pylist()
    return texts


@pytest.mark.parametrize("rows", [[4, 0, 2], [1, 1], [], [5, 4, 3, 2, 1, 0]])
def test_libcudf_takes_rows_on_the_threads_stream(rows: list[int], gpu: Device, calls: list[str]) -> None:
    column = TextColumn.of(TEXTS)
    column.strings(gpu)
    taken = column.take(np.array(rows, np.int64))
    assert calls == ["gather"] and host(taken.strings(gpu), gpu) == [TEXTS[row] for row in rows]
    assert host(Strings.of(TEXTS).on(gpu).take(np.array(rows, np.int64), gpu), gpu) == taken.to_pylist()


def test_libcudf_joins_rows_and_slices(gpu: Device, calls: list[str]) -> None:
    column = TextColumn.made(Strings.of(TEXTS).on(gpu), gpu)
    parts = [column, column[2:5], column[:0]]
    joined = TextColumn.concat(parts)
    expected = TEXTS + TEXTS[2:5]
    assert calls == ["concatenate"] and host(joined.strings(gpu), gpu) == joined.to_pylist() == expected
    assert host(Strings.concat([part.strings(gpu) for part in parts], gpu), gpu) == expected


def test_libcudf_counts_the_patterns_that_it_reads_like_re2(
    gpu: Device, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    column = TextColumn.made(Strings.of(["12 ", "a1 22 333", "", "一", "٣4"]).on(gpu), gpu)
    assert open_counter(gpu, r"\d+").count(column).tolist() == [1, 3, 0, 0, 1]
    assert open_counter(gpu, r"\p{Han}|\d\d").count(column[1:4]).tolist() == [2, 0, 1]
    assert open_counter(gpu, "a").count(column[:0]).tolist() == [] and calls == ["count_re"] * 2
    with caplog.at_level("INFO", "danqing"):
        assert open_counter(gpu, r"^\d").count(column).tolist() == [1, 0, 0, 0, 0]
    assert calls == ["count_re"] * 2
    assert r"pattern '^\d' is counted on the host by RE2: libcudf has no equal of '^'" in caplog.text


def test_without_pylibcudf_array_code_takes_the_rows(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libcudf, "_is_installed", lambda: False)
    column = TextColumn.made(Strings.of(TEXTS).on(gpu), gpu)
    assert TextColumn.concat([column.take(np.array([3, 0])), column]).to_pylist() == ["😀", "一只橘猫", *TEXTS]
