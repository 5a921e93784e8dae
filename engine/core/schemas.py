"""One schema for several tables: their columns, with types that can hold the values of all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pyarrow as pa


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Returns the columns of all schemas, in the order in which they first appear.

    A column that has types without a common one becomes text; a column that is null everywhere becomes text, too. A
    field's metadata is kept if its type is the same everywhere.

    >>> common_schema([pa.schema({"a": pa.null(), "b": pa.int64()}), pa.schema({"b": pa.string()})])
    a: string
    b: string
    """
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            before = fields.setdefault(field.name, field)
            if before.type != field.type:
                fields[field.name] = pa.field(field.name, _common_type(before.type, field.type))
    return pa.schema([pa.field(f.name, pa.string()) if pa.types.is_null(f.type) else f for f in fields.values()])


def _common_type(*types: pa.DataType) -> pa.DataType:
    try:
        schemas = [pa.schema([("", kind)]) for kind in types]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowTypeError:
        return pa.string()


def cast_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Gives a table the columns and types of a schema (`common_schema`).

    Args:
        table: its columns are columns of the schema.
        schema: the columns to return; those that the table lacks are null.

    Returns:
        The table. Values that are not text become JSON text where the schema has text.
    """
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
        elif table[field.name].type != field.type:
            columns.append(_cast(table[field.name], field.type))
        else:
            columns.append(table[field.name])
    return pa.table(columns, schema=schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    if pa.types.is_string(kind) and not pa.types.is_null(column.type):
        values = (None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in column.to_pylist())
        return pa.array(values, kind)
    return column.cast(kind)
