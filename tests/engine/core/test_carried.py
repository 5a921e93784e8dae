"""Carried fields: their names, their types, and that no JSON ends a run or collides with a column."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danqing.engine.core.carried import (
    RESERVED,
    carried_fields,
    carried_name,
    carried_table,
    common_type,
    input_key,
    is_json_text,
    join,
    uid_of,
)

ROW = {"uid": "0" * 32, "url": None, "caption": "猫", "image_bytes": 9}


def written(table: pa.Table) -> pa.Table:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return pq.read_table(sink)


def test_no_two_fields_share_a_column() -> None:
    names = {prefix + name for name in (*RESERVED, "licence", "") for prefix in ("", "input_", "input_input_")}
    names.remove("key")  # goes to the column `input_key`
    columns = [carried_name(name) for name in names]
    assert len(set(columns)) == len(names) and not RESERVED & set(columns)
    assert [carried_name(name) for name in ("licence", "input_licence", "width")] == [
        "licence", "input_licence", "input_width",
    ]  # fmt: skip


def test_the_inputs_identity_is_kept_where_the_engine_has_another() -> None:
    assert carried_fields({"key": "k", "uid": "0" * 32, "url": None}, ROW) == {}
    fields = {"key": 4711, "uid": "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "url": ["x"], "input_key": "a"}
    assert carried_fields(fields, ROW) == {
        "input_uid": fields["uid"], "input_url": '["x"]', "input_input_key": "a",
    }  # fmt: skip
    assert input_key(fields, "k", 9) == "4711" and input_key({"key": "k"}, "k", 9) is input_key({}, "k", 9) is None
    assert uid_of(fields["uid"]) == "f81d4fae7dec11d0a76500a0c91e6bf6" == uid_of("F81D4FAE7DEC11D0A76500A0C91E6BF6")
    assert [uid_of(value) for value in ("f81d4fae", 7, None, "g" * 32, "-" * 32 + "0" * 32)] == [None] * 5


def test_the_engines_own_output_can_be_curated_again_and_again() -> None:
    made = {*ROW, "shard", "row", "words", "width", "text_clean"}
    first = carried_fields(
        {"width": 7, "input_width": 8, "caption": "原", "licence": "CC0"}, ROW | {"caption": "原"}, made
    )
    assert first == {"input_width": 7, "input_input_width": 8, "licence": "CC0"} | {"input_caption": "原"}
    output = {
        **ROW,
        "key": "k_1",
        "input_key": "k",
        "caption": "原文",
        "shard": "0",
        "row": 3,
        "words": 5,
        "width": 160,
        "group": 4,
        "aesthetic": 5.5,
    } | first
    output.pop("input_caption")
    again = carried_fields(output, ROW, made)
    assert again == {
        "input_width": 7, "input_input_width": 8, "licence": "CC0", "input_caption": "原文", "input_aesthetic": 5.5,
    }  # fmt: skip
    assert carried_fields(output | {"input_caption": None}, ROW, made) == again  # a table has nulls, a .json has none
    assert carried_fields({**output, **again}, ROW, made) == again and input_key(output, "k_1", 9) == "k"
    assert "input_words" in carried_fields(output | {"image_bytes": 8}, ROW, made)  # another's table


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, None], pa.null()), ([1, None, 2], pa.int64()), ([1, 2.5], pa.float64()), ([True, False], pa.bool_()),
        ([True, 1], None), ([1, "1"], None), (["a"], pa.string()), ([[], [1]], pa.list_(pa.int64())), ([[{}]], None),
        ([{"a": {"b": {}}}], None), ([{"a": 1}, {"b": 2}], pa.struct([("a", pa.int64()), ("b", pa.int64())])),
        ([{"a": 1}, [1]], None), ([{f"{n}": n for n in range(300)}], None), ([{"\ud800": 1}], None),
    ],
)  # fmt: skip
def test_types_of_values(values: list[Any], kind: pa.DataType | None) -> None:
    assert common_type(values) == kind


def test_what_has_no_common_type_is_json_text() -> None:
    table = written(carried_table([{"a": 1, "d": 2**70, "f": 2**60 + 1}, {"a": "x", "d": None, "f": 0.5}]))
    assert table.to_pydict() == {"a": ["1", '"x"'], "d": [str(2**70), None], "f": [str(2**60 + 1), "0.5"]}
    assert all(map(is_json_text, table.schema))
    nan, infinity = float("nan"), float("inf")
    table = written(carried_table([{"x": nan, "y": [infinity, 1.5], "z": [nan, "a"], "n": None}, {"x": 1.5}]))
    assert table.to_pydict() == {
        "n": [None, None],
        "x": [None, 1.5],
        "y": [[None, 1.5], None],
        "z": ['[null, "a"]', None],
    }
    assert table.schema.field("n").type == pa.string()


def test_lone_surrogates_change_one_value_only() -> None:
    table = written(carried_table([{"a": "x\ud800", "b\ud800": 1, "c": ["\udfff"]}, {"a": "猫", "b\\ud800": 2}]))
    assert table.to_pydict() == {
        "a": ["x\ufffd", "猫"],
        "b\\ud800": [None, 2],
        "b\\ud800_": [1, None],
        "c": [["\ufffd"], None],
    }


def random_json(chance: random.Random, level: int = 0) -> Any:
    text = "".join(chance.choice('a猫\ud800\udfff\0"\\. ') for _ in range(chance.randrange(4)))
    scalars = [None, True, 0, -1, 2**53 + 1, 2**64, 0.5, -0.0, float("nan"), float("-inf"), 1e300, text]
    form = chance.randrange(5) if level < 6 else 0
    if form == 3:
        return [random_json(chance, level + 1) for _ in range(chance.randrange(3))]
    if form == 4:
        return {f"{chance.choice('ab猫')}{text}": random_json(chance, level + 1) for _ in range(chance.randrange(3))}
    return chance.choice(scalars)


@pytest.mark.parametrize("seed", range(200))
def test_any_json_is_written_and_read_back(seed: int) -> None:
    chance = random.Random(seed)
    names = ["a", "b", "width", "input_width", "group", "\ud800", "a.b", "", "key"]
    records = [{n: random_json(chance) for n in chance.sample(names, 3)} for _ in range(chance.randrange(1, 5))]
    records.append({"deep": json.loads("[" * (1 + seed) + "]" * (1 + seed))})
    fields = [carried_fields(record, ROW) for record in records]
    table = carried_table(fields)
    back = written(table)
    assert back.schema.equals(table.schema) and len(set(back.column_names)) == len(back.column_names)
    assert back.equals(table) and not RESERVED & set(back.column_names)
    for record, row in zip(fields, back.to_pylist(), strict=True):
        for name, value in record.items():
            if isinstance(value, bool | int) or (isinstance(value, str) and value.isprintable() and value.isascii()):
                stored = row[name.encode("utf-8", "backslashreplace").decode()]
                assert stored == value or json.loads(stored) == value
    json.dumps(back.to_pylist(), allow_nan=False)


KINDS = [
    None, pa.null(), pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.list_(pa.null()), pa.list_(pa.int64()),
    pa.list_(pa.string()), pa.struct([("a", pa.null())]), pa.struct([("a", pa.int64()), ("b", pa.string())]),
    pa.struct([("b", pa.float64())]), pa.decimal128(5, 2), pa.decimal128(38, 0), pa.decimal128(3, 3), pa.date32(),
]  # fmt: skip


def test_joining_types_does_not_depend_on_order() -> None:
    for a in KINDS:
        assert join(a, a) == a and (a is None or join(pa.null(), a) == a) and join(a, None) is None
        for b in KINDS:
            assert join(a, b) == join(b, a) == join(join(a, b), b)
            for c in KINDS:
                assert join(join(a, b), c) == join(a, join(b, c))
