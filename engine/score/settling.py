"""Settles a run whose shards are all scored: gives the shards one schema, and notes which engines scored them.

A shard is written when it is scored; the fields of later shards are not known then. `settle` joins the types of the
carried fields over all shards, and writes the shards whose schema differs again, so that scores/ reads as one dataset.
The result does not depend on the order of the shards, nor on what an interrupted call has rewritten.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from danqing.engine.core.arrow_types import cast_exactly, joinable_type, nullable_type
from danqing.engine.core.carried import JSON_TEXT, is_json_text, join, json_text, stored_field
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit
from danqing.engine.core.storage import fetch_all
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import reading
from danqing.engine.score.ledger import ENGINES

LAST_FIXED = "feature_row"
"""The last of the engine's columns; the carried fields follow it."""


def settle(run: Run) -> None:
    """Gives all shards of a run one schema, and notes in the manifest which engines scored how many shards."""
    engines = count_engines(unify([run.scores_path(shard.number) for shard in run.shards], LAST_FIXED))
    if run.manifest.get("engines") != engines:
        run.manifest["engines"] = engines
        run.save()


def unify(paths: list[Path], last_fixed: str | None = None) -> Counter[bytes]:
    """Writes the Parquet files that differ from their common schema again.

    Args:
        paths: the files.
        last_fixed: the last column of those that are the engine's; None if all columns are joined.

    Returns:
        Value of `ENGINES` in the metadata of a file → number of files that have it.
    """
    fetch_all(paths)
    union, digests, engines = _Union(last_fixed), [], Counter[bytes]()
    for path in paths:
        schema = _schema(path)
        union.add(schema)
        digests.append(_digest(schema))
        engines[(schema.metadata or {}).get(ENGINES, b"{}")] += 1
    if len(set(digests)) > 1:
        wanted = union.schema(paths)
        for path, digest in zip(paths, digests, strict=True):
            if digest != _digest(wanted):
                _rewrite(path, wanted)
    return engines


def count_engines(stored: Mapping[bytes, int]) -> dict[str, dict[str, int]]:
    """Counts the shards that each model or engine file scored: role → SHA-256 → number of shards.

    Args:
        stored: what `unify` returns.
    """
    counts: dict[str, Counter[str]] = {}
    for engines, shards in stored.items():
        for role, digest in json.loads(engines).items():
            counts.setdefault(role, Counter())[digest] += shards
    return {role: dict(sorted(counts[role].items())) for role in sorted(counts)}


def describe_engines(engines: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Returns a line per role that several engines scored."""
    return [
        f"{role}: " + ", ".join(f"{shards:,} shards by {digest[:12]}" for digest, shards in counts.items())
        for role, counts in engines.items()
        if len(counts) > 1
    ]


def _digest(schema: pa.Schema) -> bytes:
    """A digest that schemas with the same names, types and marks of JSON text share, whatever their other metadata."""
    fields = [(field.name, _signature(field.type), field.nullable, is_json_text(field)) for field in schema]
    return xxhash.xxh3_128_digest(repr(fields).encode())


def _signature(kind: pa.DataType) -> object:
    """A type as text, and as a list if it contains others, whose names can hold any characters."""
    if not kind.num_fields:
        return str(kind)
    parts = [kind.field(position) for position in range(kind.num_fields)]
    return str(kind), [(part.name, _signature(part.type), part.nullable) for part in parts]


class _Union:
    """The fields of many schemas; of each name one field, since a run can have 100,000 shards.

    Attributes:
        fixed: the engine's columns, in order of first appearance.
        carried: the other fields as they first appeared; also some that other schemas have in `fixed`. Fields that
            differ in nullability or metadata are nullable.
        present: name → number of schemas that have it as a carried field.
        differing: names of carried fields whose types differ between schemas.
    """

    def __init__(self, last_fixed: str | None) -> None:
        self.last_fixed = last_fixed
        self.fixed: dict[str, pa.Field] = {}
        self.carried: dict[str, pa.Field] = {}
        self.present = Counter[str]()
        self.differing: set[str] = set()

    def add(self, schema: pa.Schema) -> None:
        first = 0 if self.last_fixed is None else schema.get_field_index(self.last_fixed) + 1
        for position, field in enumerate(schema):
            if position < first:
                self.fixed[field.name] = field
                continue
            self.present[field.name] += 1
            there = self.carried.setdefault(field.name, field)
            if field.equals(there, True):
                continue
            kind = nullable_type(field.type)
            if kind.equals(nullable_type(there.type)) and is_json_text(field) == is_json_text(there):
                self.carried[field.name] = pa.field(field.name, kind, metadata=JSON_TEXT if is_json_text(field) else {})
            else:
                self.differing.add(field.name)

    def schema(self, paths: list[Path]) -> pa.Schema:
        """Returns the engine's columns, then the carried fields by name, with types that hold the files' values.

        Fields of a selection's tables, which have none of the engine's columns, stay in order of first appearance.
        """
        names = [name for name in self.carried if name not in self.fixed]
        kinds = _joined_types(paths, self.differing.intersection(names))
        settled = [
            stored_field(name, kinds[name]) if name in kinds else self._field(name, len(paths))
            for name in (sorted(names) if self.fixed else names)
        ]
        order = sorted(self.fixed, key=lambda name: name == self.last_fixed)
        return pa.schema([*(self.fixed[name] for name in order), *settled])

    def _field(self, name: str, schemas: int) -> pa.Field:
        field = self.carried[name]
        return field if self.present[name] == schemas else field.with_nullable(True)


def _joined_types(paths: list[Path], names: set[str]) -> dict[str, pa.DataType | None]:
    """Joins the types of some columns; a type that does not hold all values exactly becomes JSON text."""
    if not names:
        return {}
    kinds: dict[str, pa.DataType | None] = dict.fromkeys(names, pa.null())
    for path in paths:
        for name, column in _columns(path, names).items():
            kinds[name] = join(kinds[name], None if column is None else joinable_type(column))
    for path in paths:
        for name, column in _columns(path, {name for name in names if kinds[name] is not None}).items():
            stored = stored_field(name, kinds[name]).type
            if kinds[name] is not None and (column is None or cast_exactly(column, stored) is None):
                kinds[name] = None
    return kinds


def _columns(path: Path, names: set[str]) -> dict[str, pa.Array | None]:
    """The named columns that a shard has; None for JSON text, which stays JSON text."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        found = [field for field in file.schema_arrow if field.name in names]
        table = file.read(columns=[field.name for field in found if not is_json_text(field)])
    return {field.name: None if is_json_text(field) else table[field.name].combine_chunks() for field in found}


def _schema(path: Path) -> pa.Schema:
    with reading(path, "run the same command again"):
        return pq.read_schema(path)


def _rewrite(path: Path, wanted: pa.Schema) -> None:
    """Writes a shard's scores again in another schema, in place of the file or of the link to one."""
    with reading(path, "run the same command again"), pq.ParquetFile(path, pre_buffer=False) as file:
        table = file.read()
    columns = [_converted(table, field) for field in wanted]
    table = pa.Table.from_arrays(columns, schema=wanted.with_metadata(table.schema.metadata))
    with commit(path) as file:
        pq.write_table(table, file)


def _converted(table: pa.Table, wanted: pa.Field) -> pa.Array:
    if wanted.name not in table.column_names:
        return pa.nulls(len(table), wanted.type)
    there, column = table.schema.field(wanted.name), table[wanted.name].combine_chunks()
    if is_json_text(wanted) and not is_json_text(there):
        return _json_texts(column)
    cast = cast_exactly(column, wanted.type)
    if cast is None:
        raise DanqingError(f"column {wanted.name!r}: values of {there.type} do not fit {wanted.type}")
    return cast


def _json_texts(column: pa.Array) -> pa.Array:
    """Writes values as JSON text, of which each can be read back: nanoseconds, infinities and NaN become text."""
    kind = column.type
    if (pa.types.is_timestamp(kind) and kind.tz is None) or pa.types.is_time(kind):
        column = column.cast(pa.string())  # Python's times have no nanoseconds
    texts = [None if value is None else json_text(_finite(value)) for value in column.to_pylist()]
    return pa.array(texts, pa.string())


def _finite(value: Any) -> Any:
    """Replaces numbers that JSON does not have by text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return {name: _finite(item) for name, item in value.items()} if isinstance(value, dict) else value
