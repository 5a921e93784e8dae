"""Tables as every reader takes them: text that is UTF-8, and plain types in place of Arrow's views.

Arrow does not check the text of the Parquet files that it reads, and has no kernels that take rows of views.
"""

from __future__ import annotations

import pyarrow as pa
from pyarrow import types


def plain_table(table: pa.Table) -> pa.Table:
    """Casts views to plain types, and replaces what is not UTF-8 in columns of text by U+FFFD, also in nested ones.

    Other columns are not copied. The check of valid text runs at about 1 GB/s.

    >>> plain_table(pa.table({"a": pa.array(["小猫"], pa.string_view())})).schema.field("a").type
    DataType(string)
    """
    for position, (field, column) in enumerate(zip(table.schema, table.columns, strict=True)):
        plain = plain_column(column)
        if plain is not column:
            table = table.set_column(position, field.with_type(plain.type), plain)
    return table


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type without views: `string` for `string_view`, `binary` for `binary_view`, also in nested types."""
    if kind in (pa.string_view(), pa.binary_view()):
        return pa.string() if kind == pa.string_view() else pa.binary()
    if types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, plain_type(kind.value_type), kind.ordered)
    if types.is_struct(kind):
        return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    if types.is_list(kind) or types.is_large_list(kind):
        make = pa.list_ if types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(plain_type(kind.value_type)))
    return kind


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Does for one column what `plain_table` does; returns a column without views and with valid text as it is."""
    kind = plain_type(column.type)
    if kind != column.type:
        column = column.cast(kind)
    if not _holds_text(kind) or _is_valid(column):
        return column
    return pa.chunked_array([chunk if _is_valid(chunk) else _repaired(chunk) for chunk in column.chunks], column.type)


def text_of(column: pa.ChunkedArray) -> pa.LargeStringArray | None:
    """Returns a plain column of text, or of bytes in UTF-8, also dictionary-encoded, as text; None for other types.

    Bytes that are not UTF-8 become U+FFFD.
    """
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    if types.is_binary(kind) or types.is_large_binary(kind):
        try:
            return column.cast(pa.large_string()).combine_chunks()
        except pa.ArrowInvalid:
            return pa.array([_decoded(value) for value in column.to_pylist()], pa.large_string())
    if types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind):
        return column.cast(pa.large_string()).combine_chunks()
    return None


def _decoded(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")


def _holds_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    if types.is_nested(kind):
        return any(_holds_text(kind.field(index).type) for index in range(kind.num_fields))
    return types.is_string(kind) or types.is_large_string(kind)


def _is_valid(column: pa.Array | pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _repaired(array: pa.Array) -> pa.Array:
    kind = array.type
    if types.is_string(kind) or types.is_large_string(kind):
        values = array.cast(pa.binary() if types.is_string(kind) else pa.large_binary()).to_pylist()
        return pa.array(map(_decoded, values), kind)
    if types.is_dictionary(kind):  # different values can become equal, and a dictionary's must differ
        values = _repaired(array.dictionary).dictionary_encode()
        indices = values.indices.take(array.indices).cast(kind.index_type)
        return pa.DictionaryArray.from_arrays(indices, values.dictionary, ordered=kind.ordered)
    if types.is_struct(kind):
        members = [_repaired(array.field(index)) for index in range(kind.num_fields)]
        return pa.StructArray.from_arrays(members, fields=list(kind), mask=array.is_null())
    if types.is_list(kind) or types.is_large_list(kind):
        buffers, values = array.buffers()[:2], _repaired(array.values)
        return pa.Array.from_buffers(kind, len(array), buffers, offset=array.offset, children=[values])
    if types.is_map(kind):
        members = [_repaired(array.keys), _repaired(array.items)]
        entries = pa.StructArray.from_arrays(members, fields=[kind.key_field, kind.item_field])
        return pa.Array.from_buffers(kind, len(array), array.buffers()[:2], offset=array.offset, children=[entries])
    return array
