"""One schema to read the files of a run while it is being scored; `engine.score.settling` gives them one at its end."""

from __future__ import annotations

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
