"""Rows of text: one buffer of UTF-8 bytes and the offsets of the rows, the layout of Arrow and cuDF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from danqing.engine.core.device import Device


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

    def on(self, device: Device) -> Strings:
        """Copies the rows to the device's memory."""
        return Strings(device.up(self.offsets), device.up(self.data), self.size)

    def on_host(self, device: Device) -> Strings:
        """Copies the rows, and no others of their buffer, to host memory."""
        offsets = device.down(self.offsets)
        first = int(offsets[0])
        data = device.down(self.data[first : first + self.size])
        return Strings(offsets - first if first else offsets, data, self.size)

    def alone(self) -> Strings:
        """Returns the rows with offsets from 0, over their own bytes only; does not copy the text."""
        first = int(self.offsets[0])
        offsets = self.offsets - first if first else self.offsets
        return Strings(offsets, self.data[first : first + self.size], self.size)

    def of_one_type(self) -> Strings:
        """Returns the rows with int64 offsets and, on a CPU, read-only arrays, for which kernels are compiled once.

        Arrow's buffers are read-only, and Numba compiles a kernel separately for arrays that can be written.
        """
        offsets, data = self.offsets.astype(np.int64, copy=False), self.data
        if type(data) is np.ndarray:
            offsets, data = offsets.view(), data.view()
            offsets.flags.writeable = data.flags.writeable = False
        return Strings(offsets, data, self.size)

    def parts(self, device: Device, rows: int) -> Iterator[tuple[int, Strings]]:
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
            texts = large_strings(texts)
        _, offsets, data = texts.buffers()
        kind = np.int64 if pa.types.is_large_string(texts.type) or pa.types.is_large_binary(texts.type) else np.int32
        begins = np.frombuffer(offsets, kind)[texts.offset : texts.offset + len(texts) + 1]
        if texts.null_count and np.diff(begins)[texts.is_null().to_numpy(zero_copy_only=False)].any():
            return Strings.of(texts.fill_null(""))  # Arrow allows bytes in a row that is null
        return Strings(begins, np.frombuffer(data or b"", np.uint8), int(begins[-1]) - int(begins[0]))

    def arrow(self) -> pa.Array:
        """Returns the rows as an Arrow array over the same memory, which must be the host's."""
        offsets = pa.py_buffer(np.ascontiguousarray(self.offsets, np.int64))
        return pa.LargeStringArray.from_buffers(self.rows, offsets, pa.py_buffer(np.ascontiguousarray(self.data)))

    def take(self, rows: np.ndarray, device: Device) -> Strings:
        """Copies rows on the device.

        Args:
            rows: int (count,), positions, on the host.
            device: the device that holds the rows.
        """
        xp, positions = device.xp, device.up(rows)
        begins = self.offsets[positions].astype(np.int64)
        offsets = xp.zeros(len(rows) + 1, np.int64)
        xp.cumsum(self.offsets[positions + 1] - begins, out=offsets[1:])
        size = int(offsets[-1])
        places = xp.arange(size)
        row = xp.searchsorted(offsets[1:], places, side="right")
        return Strings(offsets, self.data[places + (begins - offsets[:-1])[row]], size)

    @staticmethod
    def concat(parts: Sequence[Strings], device: Device) -> Strings:
        """Joins columns that the device holds; copies the text."""
        xp = device.xp
        offsets, data, size = [xp.zeros(1, np.int64)], [], 0
        for part in parts:
            first = int(part.offsets[0])
            offsets.append(part.offsets[1:].astype(np.int64) + (size - first))
            data.append(part.data[first : first + part.size])
            size += part.size
        return Strings(xp.concatenate(offsets), xp.concatenate(data), size)


def large_strings(texts: Sequence[str | None] | pa.Array) -> pa.LargeStringArray:
    """Makes an Arrow array with 64-bit offsets of Python strings, or of an array of strings or binary text.

    Lone surrogates become U+FFFD.
    """
    if isinstance(texts, pa.Array):
        return texts if pa.types.is_large_string(texts.type) else texts.cast(pa.large_string())
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        whole = [
            None if text is None else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            for text in texts
        ]
        return pa.array(whole, pa.large_string())
