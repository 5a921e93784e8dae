"""cuDF and libcudf: columns of text over the same memory as ours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings


def strings_of(series: Any) -> Strings:
    """Makes `Strings` of a cuDF series of strings: CuPy arrays that view the text on the GPU, without a copy.

    Waits for all work on the GPU, since cuDF uses its own stream.
    """
    import cupy

    column, _ = series.to_pylibcudf()
    cupy.cuda.runtime.deviceSynchronize()
    return rows_of(column, series)


def rows_of(column: Any, owner: Any, is_whole: bool = False) -> Strings:
    """Makes `Strings` of a pylibcudf column of strings, with 64-bit offsets; libcudf uses 32 bits where they suffice.

    The text is not copied.

    Args:
        column: the column.
        owner: what owns the memory; the arrays keep it alive.
        is_whole: the column has no other bytes than those of its rows. Otherwise the calling thread waits for the GPU
            to tell their number.
    """
    offsets, data = buffers_of(column, owner)
    size = data.size if is_whole else int(offsets[-1]) - int(offsets[0])
    return Strings(offsets.astype(np.int64, copy=False), data, size)


def buffers_of(column: Any, owner: Any) -> tuple[Any, Any]:
    """Returns the offsets and the bytes of a pylibcudf column of strings, as CuPy arrays over the same memory.

    Args:
        column: the column.
        owner: what owns the memory; the arrays keep it alive.
    """
    import cupy
    import pylibcudf

    text = np.dtype(np.uint8)
    if not column.size():
        return cupy.zeros(1, np.int64), _view(None, text, owner)
    offsets = column.child(0)
    kind = np.dtype(np.int64 if offsets.type().id() == pylibcudf.TypeId.INT64 else np.int32)
    first = offsets.offset() + column.offset()
    begins = _view(offsets.data(), kind, owner)[first : first + column.size() + 1]
    return begins, _view(column.data(), text, owner)


def _view(span: Any, kind: np.dtype, owner: Any) -> Any:
    """Makes a CuPy array over memory of a column; keeps its owner alive."""
    import cupy

    if span is None or not span.size:
        return cupy.empty(0, kind)
    memory = cupy.cuda.UnownedMemory(span.ptr, span.size, owner)
    return cupy.ndarray(span.size // kind.itemsize, kind, cupy.cuda.MemoryPointer(memory, 0))


def column_of(strings: Strings) -> Any:
    """Makes a pylibcudf column of rows that the GPU holds, without a copy."""
    from pylibcudf import Column, DataType, TypeId

    offsets = _numbers(strings.offsets)
    return Column(DataType(TypeId.STRING), strings.rows, _span(strings.data), None, 0, 0, [offsets])


@cache
def _is_installed() -> bool:
    return find_spec("pylibcudf") is not None


def serves(device: Device) -> bool:
    """Whether libcudf copies rows of text on the device: a GPU, and pylibcudf is installed."""
    return device.kind == "cuda" and _is_installed()


def gather(strings: Strings, rows: np.ndarray, device: Device) -> Strings:
    """Copies rows by libcudf on the thread's stream, as `Strings.take`.

    Args:
        strings: on the GPU.
        rows: int (count,), positions, on the host.
        device: the GPU.
    """
    from pylibcudf import Table
    from pylibcudf.copying import OutOfBoundsPolicy
    from pylibcudf.copying import gather as gather_rows

    table, positions = Table([column_of(strings)]), _numbers(device.up(rows))
    found = gather_rows(table, positions, OutOfBoundsPolicy.DONT_CHECK, stream=stream_of(device))
    made = found.columns()[0]
    return rows_of(made, made, is_whole=True)


def concatenate(parts: Sequence[Strings], device: Device) -> Strings:
    """Joins columns on a GPU by libcudf on the thread's stream, as `Strings.concat`."""
    from pylibcudf.concatenate import concatenate as join

    columns = [column_of(part.alone()) for part in parts]  # libcudf marks a slice by the column's offset
    made = join(columns, stream=stream_of(device))
    return rows_of(made, made, is_whole=True)


def compile_regex(pattern: str) -> Any:
    """Compiles a regular expression in libcudf's syntax; see `engine.stages.regexes`."""
    from pylibcudf.strings.regex_flags import RegexFlags
    from pylibcudf.strings.regex_program import RegexProgram

    return RegexProgram.create(pattern, RegexFlags.DEFAULT)


def count_matches(strings: Strings, program: Any, device: Device) -> Any:
    """Counts the matches of a compiled regular expression on the thread's stream: int32 (rows,), on the GPU."""
    from pylibcudf.strings.contains import count_re

    if not strings.rows:
        return device.xp.zeros(0, np.int32)
    counts = count_re(column_of(strings.alone()), program, stream=stream_of(device))
    return _view(counts.data(), np.dtype(np.int32), counts)


class _Span(NamedTuple):
    """Memory of a GPU as pylibcudf's columns take it; holds the array that owns the memory."""

    ptr: int
    size: int
    owner: Any


def _span(array: Any) -> _Span:
    return _Span(array.__cuda_array_interface__["data"][0], array.nbytes, array)


def _numbers(array: Any) -> Any:
    """Makes a pylibcudf column of an array of integers, without a copy."""
    from pylibcudf import Column, DataType, TypeId

    kind = TypeId.INT64 if array.dtype == np.int64 else TypeId.INT32
    return Column(DataType(kind), len(array), _span(array), None, 0, 0, [])


class _Stream(NamedTuple):
    """A stream as pylibcudf's functions take it.

    Attributes:
        handle: of the stream.
        owner: CuPy's stream. The memory of results is freed on the stream, so they keep it alive.
    """

    handle: int
    owner: Any

    def __cuda_stream__(self) -> tuple[int, int]:
        """Returns the protocol's version and the handle."""
        return 0, self.handle


def stream_of(device: Device) -> _Stream:
    """Returns the thread's stream as pylibcudf's functions take it."""
    return _Stream(device.stream, device.xp.cuda.get_current_stream())
