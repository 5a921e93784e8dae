"""Text measures of columns of data frames. A stand-in with NumPy arrays replaces cuDF."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import replace
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from danqing.engine.core.batch_sizes import BATCH_SIZES
from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings
from danqing.engine.select.frames import measure_captions, strings_of
from danqing.engine.stages.dictionary import character_classes, open_dictionary
from danqing.kernels.text.captions import MEASURES, measure
from tests.kernels.text.texts import random_texts

TEXTS = ["一只橘猫趴在窗台上", None, "", "iPhone 15 Pro 手机壳", *random_texts(40)]


def expected(device: Device, texts: list[str | None]) -> np.ndarray:
    return measure(device, Strings.of(texts), open_dictionary(), character_classes())


@pytest.mark.parametrize("rows", [4096, 7])
def test_pandas_and_arrow_columns_have_the_measures_of_the_engine(
    device: Device, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BATCH_SIZES, "cpu", replace(BATCH_SIZES["cpu"], frame_rows=rows))
    array = pa.array(TEXTS, pa.string())
    columns: list[Any] = [
        pd.Series(TEXTS), pd.Series(array.to_pandas(types_mapper=pd.ArrowDtype)), array, TEXTS,
        pa.chunked_array([array.slice(0, 9), array.slice(9)]),
    ]  # fmt: skip
    for column in columns:
        found = measure_captions(column, device)
        assert list(found) == list(MEASURES)
        np.testing.assert_array_equal(np.stack(list(found.values()), 1), expected(device, TEXTS))
    frame = pd.DataFrame({"caption": TEXTS}).assign(**measure_captions(array, device))
    assert frame["words"][0] == 4 and frame["words"][1] == 0
    assert all(len(values) == 0 for values in measure_captions([], device).values())


class TypeId(IntEnum):
    INT32 = 3
    INT64 = 4


class Column:
    """A column with the methods of pylibcudf 26.10: the rows `first` to `first + rows` of its buffers."""

    def __init__(self, array: pa.Array, first: int, rows: int) -> None:
        self.array, self.first, self.rows = array, first, rows
        self.kind = np.dtype(np.int64 if pa.types.is_large_string(array.type) else np.int32)

    def size(self) -> int:
        return self.rows

    def offset(self) -> int:
        return self.first

    def data(self) -> Any:
        buffer = self.array.buffers()[2]
        return SimpleNamespace(ptr=buffer.address, size=buffer.size) if buffer and buffer.size else None

    def child(self, number: int) -> Any:
        assert number == 0
        buffer = self.array.buffers()[1]
        kind = TypeId.INT64 if self.kind.itemsize == 8 else TypeId.INT32
        return SimpleNamespace(
            type=lambda: SimpleNamespace(id=lambda: kind),
            data=lambda: SimpleNamespace(ptr=buffer.address, size=(len(self.array) + 1) * self.kind.itemsize),
            offset=lambda: 0,
        )


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_cudf_column_is_read_without_a_copy(
    device: Device, kind: pa.DataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ndarray(size: int, kind: np.dtype, pointer: Any) -> np.ndarray:
        memory = (ctypes.c_uint8 * (size * kind.itemsize)).from_address(pointer[0])
        return np.frombuffer(memory, kind)

    waited: list[str] = []
    cuda = SimpleNamespace(
        UnownedMemory=lambda ptr, size, owner: ptr,
        MemoryPointer=lambda memory, offset: (memory, offset),
        runtime=SimpleNamespace(deviceSynchronize=lambda: waited.append("all streams")),
    )
    cupy = SimpleNamespace(cuda=cuda, ndarray=ndarray, empty=np.empty, zeros=np.zeros)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "pylibcudf", SimpleNamespace(TypeId=TypeId))
    array = pa.array(TEXTS, kind)
    series_class = type("Series", (), {"__module__": "cudf.core.series"})

    def series(array: pa.Array, first: int, rows: int) -> Any:
        made = series_class()
        made.to_pylibcudf = lambda: (Column(array, first, rows), {})
        return made

    for first, rows in ((0, len(TEXTS)), (3, 20), (len(TEXTS) - 1, 1)):
        part = series(array, first, rows)
        found = np.stack(list(measure_captions(part, device).values()), 1)
        np.testing.assert_array_equal(found, expected(device, TEXTS[first : first + rows]))
        assert strings_of(part).data.ctypes.data == array.buffers()[2].address
    assert waited
    assert strings_of(series(pa.array(["", ""], kind), 0, 2)).arrow().to_pylist() == ["", ""]
    assert strings_of(series(array, 0, 0)).rows == 0
