"""Columns of text as one buffer of UTF-8 bytes and the offsets of its rows, the layout of Arrow and cuDF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from danqing.kernels.portable import ArrayLauncher, inlined

REPLACEMENT = 0xFFFD
"""Code point that replaces bytes that are not UTF-8."""


class Strings(NamedTuple):
    """Rows of text on a device. Row i is data[offsets[i]:offsets[i + 1]].

    Attributes:
        offsets: int32 or int64 (rows + 1,); the first need not be 0.
        data: uint8 (bytes,).
        size: bytes of all rows, on the host, so that memory for a launch is allocated without waiting for the device.
    """

    offsets: Any
    data: Any
    size: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    def on(self, device: ArrayLauncher) -> Strings:
        """Copies the rows to the device's memory."""
        return Strings(device.up(self.offsets), device.up(self.data), self.size)

    def on_host(self, device: ArrayLauncher) -> Strings:
        """Copies the rows to host memory."""
        return Strings(device.down(self.offsets), device.down(self.data), self.size)

    def parts(self, device: ArrayLauncher, rows: int) -> Iterator[tuple[int, Strings]]:
        """Splits the rows without a copy; waits for the device once.

        Args:
            device: the device that holds the rows.
            rows: maximum number of rows of a part.

        Yields:
            The number of the part's first row, and the part.
        """
        edges = np.append(np.arange(0, self.rows, rows), self.rows)
        bounds = device.down(self.offsets[device.up(edges)])
        for (start, stop), (first, last) in zip(pairwise(edges.tolist()), pairwise(bounds.tolist()), strict=True):
            yield start, Strings(self.offsets[start : stop + 1], self.data, last - first)

    @staticmethod
    def of(texts: Sequence[str | None] | pa.Array) -> Strings:
        """Makes a column of Python strings, or without a copy of an Arrow array of strings.

        None becomes an empty row, and lone surrogates become U+FFFD.
        """
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

    def arrow(self) -> pa.Array:
        """Returns the rows as an Arrow array over the same memory, which must be the host's."""
        offsets = pa.py_buffer(np.ascontiguousarray(self.offsets, np.int64))
        return pa.LargeStringArray.from_buffers(self.rows, offsets, pa.py_buffer(np.ascontiguousarray(self.data)))


@inlined
def decode(data, start, stop, chars):
    """Decodes the UTF-8 bytes data[start:stop] to code points in `chars` (int32); returns their number.

    Well-formed text decodes as in Python. In overlong forms, surrogates and sequences with stray or missing
    continuation bytes, each byte becomes U+FFFD.
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
    """Returns the code point at data[at] and its length in bytes; for a malformed one U+FFFD and 1."""
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
    """Writes one code point as UTF-8 to data[at:]; returns the position after it."""
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
