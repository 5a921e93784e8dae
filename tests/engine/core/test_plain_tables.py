"""Text that is not UTF-8, and Arrow's views, in tables."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from danqing.engine.core.plain_tables import plain_table, plain_type

INVALID = pa.array([b"\xff\xfe", b"ab", b"\xb9cd"]).view(pa.string())
TEXTS = ["\ufffd\ufffd", "ab", "\ufffdcd"]
OFFSETS = pa.array([0, 1, 3], pa.int32())


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (INVALID, TEXTS),
        (INVALID.cast(pa.binary()).cast(pa.large_binary()).view(pa.large_string()), TEXTS),
        (pa.DictionaryArray.from_arrays(pa.array([2, None, 0, 1], pa.int8()), INVALID), [TEXTS[2], None, *TEXTS[:2]]),
        (pa.ListArray.from_arrays(OFFSETS, INVALID), [TEXTS[:1], TEXTS[1:]]),
        (pa.MapArray.from_arrays(OFFSETS, INVALID, pa.array([1, 2, 3])), [[(TEXTS[0], 1)], [("ab", 2), (TEXTS[2], 3)]]),
        (
            pa.StructArray.from_arrays([INVALID], names=["a"], mask=pa.array([False, True, False])),
            [{"a": TEXTS[0]}, None, {"a": TEXTS[2]}],
        ),
    ],
)
def test_what_is_not_utf_8_is_replaced(column: pa.Array, expected: list[Any]) -> None:
    schema = pa.schema([pa.field("x", column.type, metadata={"a": "b"}), pa.field("y", pa.string())])
    for start in (0, 1):
        rows = column[start:]
        table = plain_table(pa.table([rows, ["z"] * len(rows)], schema=schema))
        table.validate(full=True)
        assert table["x"].to_pylist() == expected[start:] and table.schema.equals(schema, check_metadata=True)


def test_valid_columns_are_not_copied() -> None:
    table = pa.table({"a": ["小猫", None], "b": [["x"], []], "c": [1, 2]})
    assert plain_table(table) is table


def test_views_become_plain_types() -> None:
    text, data = pa.array(["小猫", None], pa.string_view()), pa.array([b"\xff", None], pa.binary_view())
    nested = pa.array([["a"], None], pa.list_(pa.string_view()))
    table = pa.table({"text": text, "data": data, "nested": nested})
    plain = plain_table(table)
    assert plain.schema.types == [pa.string(), pa.binary(), pa.list_(pa.string())]
    assert plain.to_pydict() == table.to_pydict() and plain.take([1, 0]).num_rows == 2
    categories = pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.uint32()), text)
    assert plain_table(pa.table({"x": categories}))["x"].to_pylist() == ["小猫", "小猫"]
    kind = pa.struct([pa.field("a", pa.string_view(), nullable=False)])
    assert plain_type(kind) == pa.struct([pa.field("a", pa.string(), nullable=False)])
