"""All shards of a run have one schema, in whatever order they were scored, and say which engines scored them."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import danqing.engine.score.settling
import danqing.engine.stages.pixels
from danqing.engine.cli.main import main
from danqing.engine.core.damage import Damage, read_damage, write_damage
from danqing.engine.core.device import Device
from danqing.engine.decide.merging import merge
from danqing.engine.phases import curate, decide_run, score_inputs
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.score.ledger import ENGINES
from danqing.engine.score.settling import describe_engines, settle, unify
from tests.conftest import picture
from tests.engine.score.test_run import GOOD, tree

Make = Callable[..., Path]
FIELDS: list[list[dict[str, Any]]] = [
    [{"note": None, "size": 1, "mixed": "a", "tags": [], "exif": {"a": None}, "big": 2**60 + 1}, {}],
    [{"note": "x", "size": 2.5, "mixed": 7, "tags": ["y"], "exif": {"a": 1, "b": "z"}, "big": 0.5}],
    [{"note": None, "size": None, "more": True, "group": "g1"}],
    [],
]


@pytest.fixture
def shards(make_shard: Make) -> list[str]:
    return [
        str(make_shard({
            f"{row}.{end}": part for row, fields in enumerate(rows)
            for end, part in (("jpg", picture(10 * number + row)), ("txt", GOOD), ("json", fields))
        }, f"{number:05d}.tar"))
        for number, rows in enumerate(FIELDS)
    ]  # fmt: skip


def test_tables_of_a_run_read_as_one_dataset(shards: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    curate(shards, out, plain_recipe, Settings())
    for kind, files in (("scores", 4), ("verdicts", 4), ("shards", 1)):
        schemas = [pq.read_schema(path) for path in sorted((out / kind).glob("*.parquet"))]
        assert len(schemas) == files and all(schema.equals(schemas[0]) for schema in schemas)
        assert len(pd.read_parquet(out / kind, engine="pyarrow")) == 4 if kind != "shards" else True
        assert len(ds.dataset(sorted((out / kind).glob("*.parquet"))).to_table()) == 4
    table = pq.read_table(out / "scores")
    names = ["note", "size", "mixed", "tags", "exif", "big", "more", "input_group"]
    assert table.select(names).to_pydict() == {
        "note": [None, None, "x", None],
        "size": [1, None, 2.5, None],
        "mixed": ['"a"', None, "7", None],
        "tags": [[], None, ["y"], None],
        "exif": [{"a": None, "b": None}, None, {"a": 1, "b": "z"}, None],
        "big": [str(2**60 + 1), None, "0.5", None],
        "more": [None, None, None, True],
        "input_group": [None, None, None, "g1"],
    }
    assert table.schema.field("size").type == pa.float64() and table.column_names[-8:] == sorted(names)


def test_no_shards_schema_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, kept = danqing.engine.score.settling._schema, weakref.WeakSet[pa.Schema]()

    def counted(path: Path) -> pa.Schema:
        assert len(kept) <= 1
        kept.add(schema := read(path))
        return schema

    monkeypatch.setattr(danqing.engine.score.settling, "_schema", counted)
    paths = [tmp_path / f"{number}.parquet" for number in range(5)]
    for number, path in enumerate(paths):
        pq.write_table(pa.table({"a": [number], f"b{number % 2}": [{"c": number if number % 2 else "x"}]}), path)
    assert unify(paths) == {b"{}": 5}
    assert {str(pq.read_schema(path)) for path in paths} == {
        "a: int64\nb0: struct<c: string>\n  child 0, c: string\nb1: struct<c: int64>\n  child 0, c: int64"
    }


def test_an_interrupted_settlement_is_finished_with_the_same_bytes(
    shards: list[str], plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate(shards, tmp_path / "whole", plain_recipe, Settings())
    rewrite = danqing.engine.score.settling._rewrite
    for after in range(4):
        out, left = tmp_path / f"out{after}", after

        def failing(path: Path, schema: pa.Schema) -> None:
            nonlocal left
            if left == 0:
                raise InterruptedError
            left -= 1
            rewrite(path, schema)

        with monkeypatch.context() as broken:
            broken.setattr(danqing.engine.score.settling, "_rewrite", failing)
            with pytest.raises(InterruptedError):
                score_inputs(shards, out, plain_recipe, Settings())
        curate(shards, out, plain_recipe, Settings())
        assert tree(out) == tree(tmp_path / "whole")
        if after == 3:  # lost scores are made again, and the run is settled again
            Run.open(out).scores_path(1).unlink()
            score_inputs(shards, out, plain_recipe, Settings())
            assert tree(out) == tree(tmp_path / "whole")


def test_a_merge_has_one_schema_and_the_damage_of_its_runs(
    shards: list[str], tmp_path: Path, device: Device, capsys: Any
) -> None:
    path = tmp_path / "features.yaml"
    path.write_text("""
recipe: features
models: {image_embedding: efficientnet-lite0-conse}
criteria:
  redundancy: {within: 0.1}
""")
    recipe = load_recipe(path)
    runs = tmp_path / "runs"
    for number in (0, 1):
        curate([shards[number]], runs / str(number), recipe, Settings())
    before = [(runs / str(number) / "scores/00000.parquet").read_bytes() for number in (0, 1)]
    merged, _ = merge([runs / "0", runs / "1"], runs / "merged", device)
    schemas = [pq.read_schema(merged.scores_path(number)) for number in (0, 1)]
    assert schemas[0].equals(schemas[1]) and len(pq.read_table(runs / "merged" / "scores")) == 3
    assert [(runs / str(number) / "scores/00000.parquet").read_bytes() for number in (0, 1)] == before
    assert list(merged.manifest["engines"]["image_embedding"].values()) == [2]
    damage = [Damage("a.tar", "byte 512", "no tar header")]
    write_damage(runs / "1", damage)
    command = ["merge", str(runs / "0"), str(runs / "1"), "-o", str(runs / "merged")]
    assert main(command) == 0 and main([*command, "--strict"]) == 3
    assert "a.tar, byte 512: no tar header" in capsys.readouterr().out and read_damage(runs / "merged") == damage
    expected = tree(runs / "merged")
    moved = runs.rename(tmp_path / "moved") / "merged"
    shutil.rmtree(moved / "shards")
    assert main(["write", str(moved)]) == 0 and tree(moved) == expected


def test_several_engines_are_counted(shards: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    run, _ = score_inputs(shards, tmp_path / "out", plain_recipe, Settings())
    assert run.manifest["engines"] == {}
    for number, digest in enumerate(("b" * 64, "a" * 64, "b" * 64)):
        path = run.scores_path(number)
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({ENGINES: json.dumps({"text_safety": digest, "x": "c"})}), path)
    settle(run)
    assert Run.open(run.folder).manifest["engines"] == {
        "text_safety": {"a" * 64: 1, "b" * 64: 2}, "x": {"c": 3},
    }  # fmt: skip
    assert describe_engines(run.manifest["engines"]) == [f"text_safety: 1 shards by {'a' * 12}, 2 shards by {'b' * 12}"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_its_rows_error(
    shards: list[str], plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    measure = danqing.engine.stages.pixels.PixelStatistics.__call__

    def failing(self: Any, batch: Any) -> None:
        measure(self, batch)
        batch["laplacian_variance"] = np.where(batch["row"] == 1, value, batch["laplacian_variance"])

    monkeypatch.setattr("danqing.engine.stages.pixels.PixelStatistics.__call__", failing)
    run, funnel, _ = curate(shards[:1], tmp_path / "out", plain_recipe, Settings())
    row = pq.read_table(run.scores_path(0)).to_pylist()[1]
    said = "NaN" if np.isnan(value) else "an infinite number"
    assert row["error"] == f"the stage pixels gave {said} for laplacian_variance" and row["laplacian_variance"] is None
    assert funnel.kept == 1


def test_rows_of_older_runs_without_score_and_error_are_dropped(
    shards: list[str], plain_recipe: Recipe, tmp_path: Path
) -> None:
    run, _ = score_inputs(shards[:1], tmp_path / "out", plain_recipe, Settings())
    path = run.scores_path(0)
    table = pq.read_table(path)
    column = table.column_names.index("laplacian_variance")
    nulls = pa.nulls(len(table), pa.float64())
    pq.write_table(table.set_column(column, "laplacian_variance", nulls), path)
    lines = {line.criterion: line for line in decide_run(run, plain_recipe).lines}
    assert lines["laplacian_variance"].dropped == 2


def test_a_field_that_cannot_be_written_again_is_its_rows_error(
    make_shard: Make, plain_recipe: Recipe, tmp_path: Path
) -> None:
    members: dict[str, Any] = {
        "0.jpg": picture(0),
        "0.txt": GOOD,
        "0.json": '{"a": 1, "deep": ' + "[" * 500 + "]" * 500 + "}",
    }
    members |= {"1.jpg": picture(1), "1.txt": GOOD, "1.json": {"a": 2}}
    run, funnel, _ = curate([str(make_shard(members))], tmp_path / "out", plain_recipe, Settings())
    rows = pq.read_table(run.scores_path(0)).to_pylist()
    assert "nested in more than 32 levels" in rows[0]["error"] and funnel.kept == 1


def unified(folder: Path, *tables: pa.Table) -> list[pa.Table]:
    paths = [folder / f"{number}.parquet" for number in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        pq.write_table(table, path)
    unify(paths)
    return list(map(pq.read_table, paths))


def one_column(values: Any, kind: pa.DataType, nullable: bool = True) -> pa.Table:
    return pa.table([pa.array(values, kind)], pa.schema([pa.field("t", kind, nullable)]))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.timestamp("ns"), [1577836800123456789]),
        (pa.time64("ns"), [1, 2]),
        (pa.float32(), [0.1, float("nan")]),
        (pa.int8(), [1]),
        (pa.map_(pa.string(), pa.int32()), [[("k", 1)]]),
        (pa.struct([("a", pa.float32())]), [{"a": 0.1}]),
    ],
)
def test_types_that_differ_in_nullability_stay(kind: pa.DataType, values: list[Any], tmp_path: Path) -> None:
    before = one_column(values, kind)
    for table in unified(tmp_path, one_column(values, kind, False), before):
        assert table.schema.field("t").nullable and table.schema.field("t").type == kind
        assert table["t"].combine_chunks().to_string() == before["t"].combine_chunks().to_string()


US, NS = pa.timestamp("us"), pa.timestamp("ns")


@pytest.mark.parametrize(
    ("a", "b", "joined"),
    [
        ((US, [1]), (NS, [1577836800123456789]), NS),
        ((pa.timestamp("us", "Asia/Shanghai"), [5]), (pa.timestamp("ms", "UTC"), [7]), pa.timestamp("us", "UTC")),
        ((pa.time32("ms"), [3]), (pa.time64("ns"), [1]), pa.time64("ns")),
        ((pa.binary(), [b"\xff"]), (pa.string(), ["a"]), pa.binary()),
        ((pa.string(), ["a"]), (pa.large_string(), ["b"]), pa.large_string()),
        ((pa.int32(), [1, None]), (pa.float64(), [float("inf")]), pa.float64()),
        ((pa.uint8(), [255]), (pa.int8(), [-1]), pa.int16()),
        ((pa.map_(pa.string(), pa.int32()), [[("k", 1)], None]), (pa.map_(pa.string(), pa.int64()), [[("k", 2)]]),
         pa.map_(pa.string(), pa.int64())),
        ((pa.list_(pa.string()), [[], None, [None]]), (pa.list_(pa.int8()), [[1], [2, 3]]), pa.list_(pa.int8())),
        ((pa.struct([("a", pa.int8())]), [{"a": 1}, None]), (pa.struct([("b", NS)]), [{"b": 1577836800123456789}]),
         pa.struct([("a", pa.int8()), ("b", NS)])),
        ((pa.dictionary(pa.int8(), pa.string()), ["x"]), (pa.string(), ["y"]), pa.string()),
    ],
)  # fmt: skip
def test_types_are_joined_without_changing_a_value(a: Any, b: Any, joined: pa.DataType, tmp_path: Path) -> None:
    for table, (kind, values) in zip(
        unified(tmp_path, one_column(*a[::-1]), one_column(*b[::-1])), (a, b), strict=True
    ):
        assert table.schema.field("t").type == joined
        expected = pa.array(values, kind)
        assert table["t"].combine_chunks().is_null().equals(expected.is_null())
        if not pa.types.is_nested(kind):
            assert table["t"].combine_chunks().equals(expected.cast(joined))
        elif pa.types.is_map(kind):
            assert table["t"].to_pylist() == values


@pytest.mark.parametrize(
    ("a", "b", "texts"),
    [
        ((pa.time64("ns"), [1]), (pa.int8(), [1]), ['"00:00:00.000000001"', "1"]),
        ((NS, [1]), (pa.int8(), [1]), ['"1970-01-01 00:00:00.000000001"', "1"]),
        (
            (pa.timestamp("s"), [10413792000]),
            (NS, [1]),
            ['"2300-01-01 00:00:00.000"', '"1970-01-01 00:00:00.000000001"'],
        ),
        ((pa.uint64(), [2**64 - 1]), (pa.int64(), [-1]), [str(2**64 - 1), "-1"]),
        ((pa.binary(), [b"\xff"]), (pa.int8(), [1]), ['"/w=="', "1"]),
        ((pa.float64(), [float("nan")]), (pa.string(), ["x"]), ['"nan"', '"x"']),
    ],
)
def test_what_has_no_common_type_is_text_of_the_same_value(a: Any, b: Any, texts: list[str], tmp_path: Path) -> None:
    tables = unified(tmp_path, one_column(*a[::-1]), one_column(*b[::-1]))
    assert [table["t"][0].as_py() for table in tables] == texts


def test_a_column_that_is_missing_in_one_file_is_nullable(tmp_path: Path) -> None:
    present = one_column([1], pa.int64(), nullable=False)
    tables = unified(tmp_path, present, pa.table({"x": [1]}))
    assert [table.column("t").to_pylist() for table in tables] == [[1], [None]]
    assert {str(table.schema) for table in tables} == {"t: int64\nx: int64"}


def test_input_columns_named_as_the_engines_are_joined(tmp_path: Path) -> None:
    first = pa.table({"w": pa.array([1], pa.int8()), "feature_row": pa.array([1], pa.int8())})
    tables = unified(tmp_path, first, pa.table({"w": ["x"], "feature_row": ["y"]}))
    assert [table.to_pylist() for table in tables] == [
        [{"w": "1", "feature_row": "1"}], [{"w": '"x"', "feature_row": '"y"'}],
    ]  # fmt: skip
