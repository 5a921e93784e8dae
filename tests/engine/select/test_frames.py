"""Text measures of columns of data frames. A stand-in with NumPy arrays replaces cuDF."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from danqing.engine.core.batch_sizes import BATCH_SIZES
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.strings import Strings
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from danqing.engine.select.frames import judge_frame, measure_captions, measures_of, strings_of
from danqing.engine.sources.tables import Columns
from danqing.engine.stages.characters import character_classes
from danqing.engine.stages.dictionary import open_dictionary
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
        found = measures_of(column, device)
        assert list(found) == list(MEASURES)
        np.testing.assert_array_equal(np.stack(list(found.values()), 1), expected(device, TEXTS))
    frame = pd.DataFrame({"caption": TEXTS}).assign(**measures_of(array, device))
    assert frame["words"][0] == 4 and frame["words"][1] == 0
    assert all(len(values) == 0 for values in measures_of([], device).values())


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


@pytest.fixture
def cudf(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand-ins for CuPy, pylibcudf and cuDF over NumPy arrays; `waited` lists synchronizations and cuDF's work."""

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

    class Series:
        def __init__(self, array: pa.Array, first: int, rows: int) -> None:
            self.array, self.first, self.rows = array, first, rows
            self.index = pd.RangeIndex(rows)

        def to_pylibcudf(self) -> tuple[Column, dict[str, Any]]:
            return Column(self.array, self.first, self.rows), {}

        def notna(self) -> Any:
            waited.append("cuDF works")
            return SimpleNamespace(values=np.array(self.array.slice(self.first, self.rows).is_valid()))

    class DataFrame(dict[str, Any]):
        index: Any

        def __init__(self, data: Any, index: Any = None) -> None:
            super().__init__(data)
            self.index = index

        @property
        def columns(self) -> list[str]:
            return list(self)

        @classmethod
        def from_arrow(cls, table: pa.Table) -> DataFrame:
            return cls(table.to_pydict())

    for made in (Series, DataFrame):
        made.__module__ = "cudf.core"
    module = SimpleNamespace(Series=Series, DataFrame=DataFrame, waited=waited)
    monkeypatch.setitem(sys.modules, "cudf", module)
    return module


def test_measures_are_complete_when_another_library_gets_them(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    copy = np.ascontiguousarray
    monkeypatch.setattr(Device, "wait", lambda self: calls.append("wait"))
    monkeypatch.setattr(np, "ascontiguousarray", lambda *given, **named: calls.append("copy") or copy(*given, **named))
    measures_of(TEXTS[:3], device)
    assert calls[-1] == "wait" and "copy" in calls


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_cudf_column_is_read_without_a_copy(device: Device, kind: pa.DataType, cudf: Any) -> None:
    array, series = pa.array(TEXTS, kind), cudf.Series
    for first, rows in ((0, len(TEXTS)), (3, 20), (len(TEXTS) - 1, 1)):
        part = series(array, first, rows)
        found = np.stack(list(measures_of(part, device).values()), 1)
        np.testing.assert_array_equal(found, expected(device, TEXTS[first : first + rows]))
        assert strings_of(part).data.ctypes.data == array.buffers()[2].address
    assert cudf.waited
    measured = measure_captions(series(array, 0, 4), device)
    assert type(measured) is cudf.DataFrame and measured["words"].tolist() == [4, 0, 0, measured["words"][3]]
    assert strings_of(series(pa.array(["", ""], kind), 0, 2)).arrow().to_pylist() == ["", ""]
    assert strings_of(series(array, 0, 0)).rows == 0


GOOD = "公园的草地上有一只可爱的小猫在晒太阳"
URL = "https://x.example/1.jpg"
ROWS = [(URL, GOOD), (URL, "小猫"), (None, GOOD), ("ftp://x.example/1", GOOD), (URL, None), (URL, GOOD + "\u200d😀")]
VERDICTS = [None, "words", "usable", "usable", "usable", None]
ERRORS = [None, None, "no URL", "not a URL of the web: ftp://x.example/1", "no caption", None]


def judged(frame: Any, recipe: Recipe) -> Any:
    return judge_frame(frame, recipe, Columns("", ""), Settings())


def check(found: dict[str, list[Any]]) -> None:
    assert found["keep"] == [verdict is None for verdict in VERDICTS]
    assert [None if pd.isna(name) else name for name in found["dropped_by"]] == VERDICTS
    assert [None if pd.isna(text) else text for text in found["error"]] == ERRORS
    assert found["text_clean"][5] == GOOD and found["words"][1] == 1


def test_the_rows_of_a_frame_are_judged_like_those_of_a_table(plain_recipe: Recipe) -> None:
    urls, captions = map(list, zip(*ROWS, strict=True))
    table = pa.table({"URL": urls, "id": range(6), "TEXT": captions})
    found = judged(table, plain_recipe)
    assert isinstance(found, pa.Table)
    check(found.to_pydict())
    frame = table.to_pandas()
    frame.index = pd.Index([7, 7, 3, 9, 1, 0])  # as after a filter and a concat
    verdicts = judged(frame, plain_recipe)
    assert verdicts.index.equals(frame.index) and verdicts["keep"].dtype == bool
    check(verdicts.to_dict("list"))
    assert frame[verdicts["keep"]]["id"].tolist() == [0, 5]
    assert frame.assign(**measured(frame["TEXT"]))["words"].tolist()[1] == 1
    assert len(judged(frame.iloc[:0], plain_recipe)) == 0
    assert judged(frame.assign(column_names=1), plain_recipe)["keep"].sum() == 2
    numbered = frame[["URL", "TEXT"]].set_axis([0, 1], axis=1)
    assert judge_frame(numbered, plain_recipe, Columns("0", "1"), Settings())["keep"].sum() == 2
    with pytest.raises(DanqingError, match=r"no column 'url'; choose one with url_col\. It has: 0, 1"):
        judged(numbered, plain_recipe)
    with pytest.raises(DanqingError, match="column 'TEXT' of the frame cannot be read"):
        judged(frame.assign(TEXT=[1, "a", b"b", 2.0, {}, None]), plain_recipe)
    with pytest.raises(DanqingError, match="column 'TEXT' of the frame holds int64, not text; choose another with cap"):
        judged(frame.assign(TEXT=1), plain_recipe)
    for other in ({"url": ["a"]}, [1], None):
        with pytest.raises(DanqingError, match="judge_frame takes a DataFrame of cuDF, pandas or polars"):
            judged(other, plain_recipe)


def test_text_that_is_no_unicode_is_read_and_other_values_are_refused(plain_recipe: Recipe) -> None:
    broken = pd.DataFrame({"url": [URL], "caption": pd.Series([GOOD + "\ud83d"], dtype=object)})
    assert judged(broken, plain_recipe)["error"].isna().all()
    view = pa.array(["小猫\ufffd"], pa.string_view())
    same = [["小猫\ud83d"], pa.array(["小猫\ufffd".encode()[:-2]]), view, view.cast(pa.string()).dictionary_encode()]
    assert len({tuple(measured(captions).to_pylist()[0].values()) for captions in same}) == 1
    assert measured(pd.Series([None, float("nan")]))["words"].tolist() == [0, 0]
    for wrong in (broken, [["小猫"]], [1], "小猫", None):
        with pytest.raises(DanqingError, match="measure_captions takes a series"):
            measured(wrong)


def measured(captions: Any) -> Any:
    with open_device() as device:
        return measure_captions(captions, device)


def test_polars_frames_are_judged_and_measured(plain_recipe: Recipe) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(ROWS, schema=["url", "caption"], orient="row")
    found = judged(frame, plain_recipe)
    assert isinstance(found, polars.DataFrame)
    check(found.to_dict(as_series=False))
    assert frame.filter(found["keep"]).height == 2
    assert frame.hstack(measured(frame["caption"]))["words"].to_list()[1] == 1


def test_a_cudf_frame_is_judged_by_its_columns_on_the_device(plain_recipe: Recipe, cudf: Any) -> None:
    urls, captions = (pa.array(column, pa.string()) for column in zip(*ROWS, strict=True))
    frame = cudf.DataFrame({"url": cudf.Series(urls, 0, 6), "caption": cudf.Series(captions, 0, 6)}, pd.RangeIndex(6))
    found = judged(frame, plain_recipe)
    assert type(found) is cudf.DataFrame and found.index is frame.index
    assert cudf.waited == ["cuDF works", "all streams", "all streams"]  # no work after the wait
    check(found)


def test_the_page_on_frames_runs_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "select.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert names["kept"]["text_clean"].tolist() == [GOOD]
    assert names["found"]["dropped_by"].tolist()[1:] == ["words", "usable"]
    assert names["frame"]["words"].tolist()[1] == 1 and "usable" in capsys.readouterr().out
