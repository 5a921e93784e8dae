"""Text as kernels see it: one buffer of UTF-8 bytes and where each row begins, as Arrow and cuDF keep it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from danqing.kernels.portable import ArrayLauncher, inlined

REPLACEMENT = 0xFFFD
"""What stands for bytes that are not UTF-8."""


class Strings(NamedTuple):
    """Rows of text on a device.

    `offsets`: int32 or int64 (rows + 1,); `data`: uint8 (bytes,). Row i is data[offsets[i]:offsets[i + 1]]. `size`:
    bytes of all rows, known on the host, so that memory for a launch is allocated without waiting for the device.
    """

    offsets: Any
    data: Any
    size: int

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    def on(self, device: ArrayLauncher) -> Strings:
        """The rows in the device's memory."""
        return Strings(device.up(self.offsets), device.up(self.data), self.size)

    def on_host(self, device: ArrayLauncher) -> Strings:
        """The rows in the host's memory."""
        return Strings(device.down(self.offsets), device.down(self.data), self.size)

    def parts(self, device: ArrayLauncher, rows: int) -> Iterator[tuple[int, Strings]]:
        """Splits the rows without a copy; waits for the device once.

        Args:
            device: the device that holds the rows.
            rows: most rows of a part.

        Yields:
            The number of the part's first row, and the part.
        """
        edges = np.append(np.arange(0, self.rows, rows), self.rows)
        bounds = device.down(self.offsets[device.up(edges)])
        for (start, stop), (first, last) in zip(pairwise(edges.tolist()), pairwise(bounds.tolist()), strict=True):
            yield start, Strings(self.offsets[start : stop + 1], self.data, last - first)

    @staticmethod
    def of(texts: Sequence[str | None] | pa.Array) -> Strings:
        """From Python strings (None counts as empty, lone surrogates as U+FFFD) or, without a copy, from Arrow."""
        if not isinstance(texts, pa.Array):
            try:
                texts = pa.array(texts, pa.large_string())
            except UnicodeEncodeError:
                whole = [(text or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
                texts = pa.array(whole, pa.large_string())
        _, offsets, data = texts.buffers()
        kind = np.int64 if pa.types.is_large_string(texts.type) or pa.types.is_large_binary(texts.type) else np.int32
        begins = np.frombuffer(offsets, kind)[texts.offset : texts.offset + len(texts) + 1]
        return Strings(begins, np.frombuffer(data or b"", np.uint8), int(begins[-1]) - int(begins[0]))

    @staticmethod
    def of_cudf(series: Any) -> Strings:
        """From a cuDF series of strings, without a copy: CuPy arrays over the column's own memory on the GPU.

        Waits for whatever is under way there, since cuDF works on a stream of its own.
        """
        import cupy
        import pylibcudf

        def view(span: Any, kind: np.dtype) -> Any:  # `series` owns the memory, and lives as long as the view
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

    def arrow(self) -> pa.Array:
        """The rows as an Arrow array over the same (host) memory."""
        offsets = pa.py_buffer(np.ascontiguousarray(self.offsets, np.int64))
        return pa.LargeStringArray.from_buffers(self.rows, offsets, pa.py_buffer(np.ascontiguousarray(self.data)))


@inlined
def decode(data, start, stop, chars):
    """UTF-8 bytes data[start:stop] to code points in `chars` (int32); returns how many.

    A byte that does not fit becomes U+FFFD, alone: overlong forms, surrogates and stray or missing continuation
    bytes, so that every input has an answer. Well-formed text decodes as Python decodes it.
    """
    count = 0
    at = start
    while at < stop:
        chars[count], size = decode_one(data, at, stop)
        at += size
        count += 1
    return count


@inlined
def decode_one(data, at, stop):
    """The code point at data[at] and its length in bytes; where there is none, U+FFFD and 1."""
    lead = np.int32(data[at])
    if lead < 0x80:
        return lead, 1
    size = 2 + (lead >= 0xE0) + (lead >= 0xF0)
    if lead < 0xC2 or lead > 0xF4 or at + size > stop:
        return np.int32(REPLACEMENT), 1
    code = lead & (0x7F >> size)
    for follower in range(at + 1, at + size):
        byte = np.int32(data[follower])
        if byte & 0xC0 != 0x80:
            return np.int32(REPLACEMENT), 1
        code = code << 6 | byte & 0x3F
    overlong = size > 2 and code < 1 << (5 * size - 4)
    if overlong or code > 0x10FFFF or (code >= 0xD800 and code < 0xE000):
        return np.int32(REPLACEMENT), 1
    return np.int32(code), size


@inlined
def encode(code, data, at):
    """Writes one code point as UTF-8 at data[at:]; returns the position behind it."""
    if code < 0x80:
        data[at] = code
        return at + 1
    if code < 0x800:
        data[at] = 0xC0 | code >> 6
        data[at + 1] = 0x80 | code & 0x3F
        return at + 2
    if code < 0x10000:
        data[at] = 0xE0 | code >> 12
        data[at + 1] = 0x80 | code >> 6 & 0x3F
        data[at + 2] = 0x80 | code & 0x3F
        return at + 3
    data[at] = 0xF0 | code >> 18
    data[at + 1] = 0x80 | code >> 12 & 0x3F
    data[at + 2] = 0x80 | code >> 6 & 0x3F
    data[at + 3] = 0x80 | code & 0x3F
    return at + 4
