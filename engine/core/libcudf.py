"""cuDF and libcudf: columns of text over the same memory as ours."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings, TextColumn


def strings_of(series: Any) -> Strings:
    """Makes a column of a cuDF series of strings without a copy: CuPy arrays over the series' memory on the GPU.

    Waits for all work on the GPU, since cuDF uses its own stream.
    """
    import cupy
    import pylibcudf

    def view(span: Any, kind: np.dtype) -> Any:  # the view keeps `series` alive, which owns the memory
        if span is None or not span.size:
            return cupy.empty(0, kind)
        memory = cupy.cuda.UnownedMemory(span.ptr, span.size, series)
        return cupy.ndarray(span.size // kind.itemsize, kind, cupy.cuda.MemoryPointer(memory, 0))

    column, _ = series.to_pylibcudf()
    if not column.size():
        return Strings(cupy.zeros(1, np.int64), view(None, np.dtype(np.uint8)), 0)
    cupy.cuda.runtime.deviceSynchronize()
    offsets = column.child(0)
    kind = np.dtype(np.int64 if offsets.type().id() == pylibcudf.TypeId.INT64 else np.int32)
    first = column.offset()
    begins = view(offsets.data(), kind)[offsets.offset() + first : offsets.offset() + first + column.size() + 1]
    return Strings(begins, view(column.data(), np.dtype(np.uint8)), int(begins[-1]) - int(begins[0]))


class RegexCounter:
    """Counts the matches of a regular expression by libcudf.

    Args:
        device: a GPU.
        pattern: in libcudf's syntax.
    """

    def __init__(self, device: Device, pattern: str) -> None:
        from pylibcudf.strings.regex_flags import RegexFlags
        from pylibcudf.strings.regex_program import RegexProgram

        self.device = device
        self.program = RegexProgram.create(pattern, RegexFlags.DEFAULT)

    def count(self, text: TextColumn) -> np.ndarray:
        """Returns the number of matches in each text: int32 (rows,), on the host."""
        import cupy
        from pylibcudf.strings.contains import count_re

        if not len(text):
            return np.zeros(0, np.int32)
        counts = count_re(column_of(text.strings(self.device)), self.program, stream=_Stream(self.device.stream))
        span = counts.data()
        memory = cupy.cuda.UnownedMemory(span.ptr, span.size, counts)
        return self.device.down(cupy.ndarray(len(text), np.int32, cupy.cuda.MemoryPointer(memory, 0)))


class _Stream(NamedTuple):
    """A stream as pylibcudf's functions take it."""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        """Returns the protocol's version and the handle."""
        return 0, self.handle


class _Span(NamedTuple):
    """Memory of a GPU as pylibcudf's columns take it; holds the array that owns the memory."""

    ptr: int
    size: int
    owner: Any


def column_of(strings: Strings) -> Any:
    """Makes a pylibcudf column of rows that the GPU holds, without a copy."""
    from pylibcudf import Column, DataType, TypeId

    def span(array: Any) -> _Span:
        return _Span(array.data.ptr, array.nbytes, array)

    rows = strings.rows
    kind = TypeId.INT64 if strings.offsets.dtype == np.int64 else TypeId.INT32
    offsets = Column(DataType(kind), rows + 1, span(strings.offsets), None, 0, 0, [])
    return Column(DataType(TypeId.STRING), rows, span(strings.data), None, 0, 0, [offsets])
