"""The input's own fields, carried through a run as columns: their names, and one type for each.

A field's column name depends on the field's name only (`carried_name`), so no two fields of a row share a column.
Types are found from the values (`common_type`) and joined over the shards of a run (`join`). Values without a common
type, and values that Parquet cannot hold, are stored as JSON text.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from danqing.engine.core.arrow_types import join_scalars
from danqing.engine.core.columns import COLUMNS, SCORED, VERDICTS
from danqing.engine.core.escape import SURROGATES, valid_text

PREFIX = "input_"
RESERVED = frozenset({*COLUMNS, "text"})
"""Names that no carried column may have: all columns of the engine, and those of written Parquet files."""
IDENTITY = ("uid", "url")
"""Fields that become columns of the engine. The input's value is carried only where it differs from the column's."""
JSON_TEXT = {b"danqing.encoding": b"json"}
"""Metadata of a column whose values are JSON text."""
MAX_DEPTH = 32
"""Levels of nesting. Deeper JSON of the input is a row's error, and deeper values of a table are stored as JSON text:
Parquet files of more than 100 levels cannot be read, and Python's JSON encoder stops at 1,000."""
MAX_MEMBERS = 256
"""Members of a nested column; values with more names are JSON text, since each name would be a column."""
UID = re.compile("[0-9a-f]{32}")
RFC_4122 = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_OWN = {"shard": str, "row": int, "key": str, "uid": str, "image_bytes": int}
_OF_A_RUN = frozenset(
    {"shard", "row", "key", "input_key", "image_bytes", *(column.name for column in (*SCORED, *VERDICTS))}
)


def uid_of(value: Any) -> str | None:
    """Converts an input's uid, 32 hex digits with or without the dashes of RFC 4122, to the engine's form.

    Returns:
        32 hex digits, or None if the value is not such a number.

    >>> uid_of("F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6")
    'f81d4fae7dec11d0a76500a0c91e6bf6'
    """
    if not isinstance(value, str):
        return None
    lowered = value.lower()
    return lowered.replace("-", "") if UID.fullmatch(lowered) or RFC_4122.fullmatch(lowered) else None


def carried_name(name: str, reserved: Container[str] = RESERVED) -> str:
    """Returns the column of an input field: its name, with one more `input_` if it is `input_…input_` + a reserved one.

    The names of different fields differ, and none is reserved.

    >>> carried_name("width"), carried_name("input_width"), carried_name("licence")
    ('input_width', 'input_input_width', 'licence')
    """
    base = name
    while base not in reserved and base.startswith(PREFIX):
        base = base.removeprefix(PREFIX)
    return PREFIX + name if base in reserved else name


def carried_fields(
    fields: Mapping[str, Any], row: Mapping[str, Any], made: Collection[str] = (), reserved: Collection[str] = RESERVED
) -> dict[str, Any]:
    """Names the carried fields of one row.

    In a row of the engine's own output, the columns of the earlier run are replaced by those of this run: the first
    input's fields keep the names they have, so that a data set can be curated again and again.

    Args:
        fields: the input's fields.
        row: the row's `uid`, `url`, `caption` and `image_bytes`.
        made: all columns that this run makes.
        reserved: see `carried_name`.
    """
    if _is_own_output(fields, row["image_bytes"]):
        return _carried_again(fields, row, made, reserved)
    carried = {carried_name(n, reserved): value for n, value in fields.items() if n not in (*IDENTITY, "key")}
    for name in IDENTITY:
        if fields.get(name) is not None and fields[name] != row[name]:
            carried[PREFIX + name] = as_text(fields[name])
    return carried


def input_key(fields: Mapping[str, Any], key: str, image_bytes: int) -> str | None:
    """Returns the input's own key as text where it is not `key`, for the column `input_key`; else None."""
    own = fields.get("input_key") if _is_own_output(fields, image_bytes) else None
    own = fields.get("key") if own is None else own
    return None if own is None or own == key else as_text(own)


def _is_own_output(fields: Mapping[str, Any], image_bytes: int) -> bool:
    return (
        fields.get("image_bytes") == image_bytes
        and all(isinstance(fields.get(name), kind) for name, kind in _OWN.items())
        and UID.fullmatch(fields["uid"]) is not None
    )


def _carried_again(
    fields: Mapping[str, Any], row: Mapping[str, Any], made: Collection[str], reserved: Collection[str]
) -> dict[str, Any]:
    carried = {name: value for name, value in fields.items() if name not in reserved}
    for name, value in fields.items():
        is_other = value != row[name] if name in row else name not in made
        if name in reserved and name not in _OF_A_RUN and is_other and carried.get(PREFIX + name) is None:
            carried[PREFIX + name] = value
    return carried


def as_text(value: Any) -> str:
    """Returns text as it is, and other values as JSON."""
    return value if isinstance(value, str) else json_text(value)


def json_text(value: Any) -> str:
    """Writes a value as JSON: non-finite numbers as null, values that JSON does not know as text."""
    try:
        return json.dumps(value, allow_nan=False, default=_text_of)
    except ValueError:
        return json.dumps(_storable(value), default=_text_of)


def _text_of(value: Any) -> str:
    """Text for a value that JSON does not know; bytes in base64."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def carried_table(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Makes a table of carried fields.

    Args:
        records: per row, column → value, as from `carried_fields`.

    Returns:
        A column per field, sorted by name, with null where a row has no such field.
    """
    names = sorted({name for record in records for name in record})
    columns = {name: column_of([record.get(name) for record in records]) for name in names}
    fields, taken = [], set[str]()
    for name, (kind, _) in columns.items():
        stored = _escaped(name)
        while stored in taken or (stored != name and stored in columns):
            stored += "_"
        taken.add(stored)
        fields.append(stored_field(stored, kind))
    return pa.Table.from_arrays([array for _, array in columns.values()], schema=pa.schema(fields))


def column_of(values: Sequence[Any]) -> tuple[pa.DataType | None, pa.Array]:
    """Converts values to an Arrow array.

    Returns:
        The type as `common_type` finds it, or None if the values are stored as JSON text, and the array.
    """
    kind = common_type(values)
    if kind is not None and (array := array_of(values, kind)) is not None:
        return kind, array
    return None, pa.array([None if value is None else json_text(value) for value in values], pa.string())


def array_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array | None:
    """Converts values to an array of the type that a file stores for `kind`; None if a value does not fit exactly."""
    stored = _stored_type(kind)
    if pa.types.is_nested(stored) or pa.types.is_floating(stored):
        values = [_storable(value) for value in values]
    try:
        return pa.array(values, stored)
    except UnicodeEncodeError:  # lone surrogates, which JSON can hold
        return pa.array([_storable(value) for value in values], stored)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return None


def stored_field(name: str, kind: pa.DataType | None) -> pa.Field:
    """The field of a column in a file: a string where there is no value, and JSON text for the type None."""
    return pa.field(name, pa.string(), metadata=JSON_TEXT) if kind is None else pa.field(name, _stored_type(kind))


def is_json_text(field: pa.Field) -> bool:
    """Whether a column's values are JSON text."""
    return JSON_TEXT.items() <= (field.metadata or {}).items()


def _stored_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_stored_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _stored_type(field.type)) for field in kind])
    return kind


def common_type(values: Iterable[Any], level: int = 0) -> pa.DataType | None:
    """Finds the type that holds all values: null, bool, int64, float64, string, a list, a struct, or a table's type.

    Returns:
        None if there is none that a Parquet file can hold.
    """
    values = [value for value in values if value is not None]
    kinds = set(map(type, values))
    if not kinds:
        return pa.null()
    if kinds <= _SCALARS.keys():
        return _SCALARS[kinds.pop()] if len(kinds) == 1 else pa.float64() if kinds == {int, float} else None
    if level == MAX_DEPTH:
        return None
    if kinds == {list}:
        return _list(common_type(chain.from_iterable(values), level + 1))
    if kinds == {dict}:
        names = {name for value in values for name in value}
        return _struct({name: common_type((v.get(name) for v in values), level + 1) for name in _members(names)})
    try:
        kind = pa.infer_type(values)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return None
    return kind if pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or pa.types.is_binary(kind) else None


_SCALARS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def join(a: pa.DataType | None, b: pa.DataType | None) -> pa.DataType | None:
    """Joins two types of `common_type` or `joinable_type` to the smallest type that holds both.

    The order of joining makes no difference. A number can be too large for the joined type; casts check that.

    >>> join(pa.int64(), pa.float64()), join(pa.null(), pa.list_(pa.null())), join(pa.string(), pa.int64())
    (DataType(double), ListType(list<item: null>), None)
    """
    if a is None or b is None or a == b:
        return a if a == b else None
    if pa.types.is_null(a) or pa.types.is_null(b):
        return b if pa.types.is_null(a) else a
    if joined := join_scalars(a, b):
        return joined
    if pa.types.is_decimal(a) and pa.types.is_decimal(b):
        scale = max(a.scale, b.scale)
        digits = max(a.precision - a.scale, b.precision - b.scale) + scale
        return pa.decimal128(digits, scale) if digits <= pa.decimal128(38, 0).precision else None
    if pa.types.is_list(a) and pa.types.is_list(b):
        return _list(join(a.value_type, b.value_type))
    if pa.types.is_map(a) and pa.types.is_map(b):
        key, item = join(a.key_type, b.key_type), join(a.item_type, b.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        left, right = ({field.name: field.type for field in kind} for kind in (a, b))
        members = _members({*left, *right})
        return _struct({name: join(left.get(name, pa.null()), right.get(name, pa.null())) for name in members})
    return None


def _members(names: Collection[str]) -> list[str]:
    return sorted(names) if len(names) <= MAX_MEMBERS and not any(map(SURROGATES.search, names)) else []


def _list(item: pa.DataType | None) -> pa.DataType | None:
    return None if item is None else pa.list_(item)


def _struct(members: Mapping[str, pa.DataType | None]) -> pa.DataType | None:
    """None also without members: Parquet has no empty struct."""
    return pa.struct(list(members.items())) if members and None not in members.values() else None


def _storable(value: Any) -> Any:
    """Replaces what a file cannot hold: lone surrogates by U+FFFD, and non-finite numbers by null, as pandas does."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return list(map(_storable, value))
    if isinstance(value, dict):
        return {_escaped(str(name)): _storable(item) for name, item in value.items()}
    return value


def _escaped(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
