"""cuDF and libcudf: columns of text over the same memory as ours."""

from __future__ import annotations

from typing import Any

import numpy as np

from danqing.engine.core.strings import Strings


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
