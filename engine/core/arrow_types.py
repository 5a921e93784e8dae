"""Types of Arrow columns: which differ in nullability only, what joins two of them, and casts that keep every value."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

UNITS = ("s", "ms", "us", "ns")


def nullable_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type with nullable parts, without metadata; types that differ in these only give the same type."""
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, nullable_type(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(nullable_type(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(nullable_type(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(nullable_type(kind.value_type), kind.list_size)
    if pa.types.is_map(kind):
        return pa.map_(nullable_type(kind.key_type), nullable_type(kind.item_type))
    return kind


def joinable_type(column: pa.Array) -> pa.DataType:
    """Returns the type to join a column by: null where it has no value, lists of one kind, and no dictionary."""
    kind = column.type
    if column.null_count == len(column):
        return pa.null()
    if _is_list(kind):
        return pa.list_(joinable_type(column.flatten()))
    if pa.types.is_struct(kind):
        parts = zip(kind, column.flatten(), strict=True)
        return pa.struct([(field.name, joinable_type(part)) for field, part in parts])
    return kind.value_type if pa.types.is_dictionary(kind) else nullable_type(kind)


def join_scalars(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Joins two different types of numbers, times, texts or bytes; None if there is no type that holds both.

    >>> join_scalars(pa.timestamp("us"), pa.timestamp("ns")), join_scalars(pa.uint8(), pa.int8())
    (TimestampType(timestamp[ns]), DataType(int16))
    """
    types = pa.types
    for is_kind, joined in _JOINS:
        if is_kind(a) and is_kind(b):
            return joined(a, b)
    numbers = (a, b) if types.is_floating(a) else (b, a)
    if types.is_floating(numbers[0]) and types.is_integer(numbers[1]):
        return pa.float64()
    texts = {_text_type(a), _text_type(b)}
    if None in texts:
        return None
    is_large = any(map(types.is_large_string, (a, b))) or any(map(types.is_large_binary, (a, b)))
    if texts == {"text"}:
        return pa.large_string() if is_large else pa.string()
    return pa.large_binary() if is_large else pa.binary()


def cast_exactly(column: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Casts a column; None if a value would change."""
    try:
        return _cast(column, kind)
    except (pa.ArrowException, OverflowError, ValueError):
        return None


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type.equals(kind, check_metadata=True):
        return column
    if column.null_count == len(column):
        return pa.nulls(len(column), kind)
    if pa.types.is_list(kind) and _is_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).cast(pa.int32())
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum_checked(lengths)])
        values = _cast(column.flatten(), kind.value_type)
        return pa.ListArray.from_arrays(offsets, values, type=kind, mask=column.is_null())
    if pa.types.is_struct(kind) and pa.types.is_struct(column.type):
        there = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
        parts = [_cast(there.get(field.name, pa.nulls(len(column))), field.type) for field in kind]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=column.is_null())
    return column.cast(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _integers(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    signed, unsigned = (a, b) if pa.types.is_signed_integer(a) else (b, a)
    if pa.types.is_signed_integer(a) == pa.types.is_signed_integer(b):
        return max(a, b, key=_bits)
    bits = min(64, max(_bits(signed), 2 * _bits(unsigned)))
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[bits]


def _bits(kind: pa.DataType) -> int:
    return int(kind.bit_width)


def _unit(a: pa.DataType, b: pa.DataType) -> str:
    return max(a.unit, b.unit, key=UNITS.index)


def _timestamps(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The finer unit; UTC for times of two zones."""
    if (a.tz is None) != (b.tz is None):
        return None
    return pa.timestamp(_unit(a, b), a.tz if a.tz == b.tz else "UTC")


def _times(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    unit = _unit(a, b)
    return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)


_JOINS = (
    (pa.types.is_integer, _integers),
    (pa.types.is_floating, lambda a, b: max(a, b, key=_bits)),
    (pa.types.is_timestamp, _timestamps),
    (pa.types.is_time, _times),
    (pa.types.is_duration, lambda a, b: pa.duration(_unit(a, b))),
)


def _text_type(kind: pa.DataType) -> str | None:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return "bytes"
    return None
