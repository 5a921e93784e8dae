"""Columns of text of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from danqing.engine.core import libcudf
from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings, large_strings


class TextColumn:
    """The texts of a batch: an Arrow array on the host, `Strings` on the device, or both.

    The missing side is copied when it is first needed, and kept: the first stage that needs a caption on the device
    copies it there, and a text made on the device is copied to the host once. On a CPU both sides are the same memory.
    A missing text is null on the host and an empty row of `Strings`.

    >>> column = TextColumn.of(["一只橘猫", None, "窗台"])
    >>> column.take(np.array([2, 1])).arrow().to_pylist()
    ['窗台', None]
    """

    def __init__(self, host: pa.LargeStringArray | None, made: tuple[Strings, Device] | None = None) -> None:
        self._host, self._made = host, made

    @staticmethod
    def of(texts: Sequence[str | None] | pa.Array) -> TextColumn:
        """Makes a column of Python strings, whose lone surrogates become U+FFFD, or of an Arrow array of strings."""
        return TextColumn(large_strings(texts))

    @staticmethod
    def made(strings: Strings, device: Device) -> TextColumn:
        """Makes a column of rows that the device holds."""
        return TextColumn(None, (strings, device))

    def __len__(self) -> int:
        return self._made[0].rows if self._made else len(self.arrow())

    @property
    def nbytes(self) -> int:
        """Bytes of UTF-8."""
        return self._made[0].size if self._made else int(self.lengths().sum())

    def arrow(self) -> pa.LargeStringArray:
        """Returns the texts on the host."""
        if self._host is None and self._made:
            strings, device = self._made
            self._host = strings.on_host(device).arrow()
        return self._host

    def strings(self, device: Device) -> Strings:
        """Returns the texts on the device."""
        if self._made is None:
            rows = Strings.of(self.arrow())
            self._made = (rows if device.kind == "cpu" else rows.alone().on(device)), device
        return self._made[0]

    def on_host(self) -> TextColumn:
        """Returns the texts on the host only."""
        return TextColumn(self.arrow())

    def lengths(self) -> np.ndarray:
        """Returns the bytes of each text: int64 (rows,), on the host."""
        return np.diff(Strings.of(self.arrow()).offsets)

    def to_pylist(self) -> list[Any]:
        """Returns Python strings, None for missing texts. For messages and tests: stages use `strings` or `arrow`."""
        texts: list[Any] = self.arrow().to_pylist()
        return texts

    def take(self, rows: np.ndarray) -> TextColumn:
        """Copies the texts at the given positions, int (count,), on each side that is there."""
        if self._made is None or self._made[1].kind == "cpu":
            return TextColumn(self.arrow().take(pa.array(rows)))
        host = None if self._host is None else self._host.take(pa.array(rows))
        strings, device = self._made
        taken = libcudf.gather(strings, rows, device) if libcudf.serves(device) else strings.take(rows, device)
        return TextColumn(host, (taken, device))

    def __getitem__(self, rows: slice) -> TextColumn:
        """Returns consecutive texts, without a copy of them."""
        start, stop, _ = rows.indices(len(self))
        host = None if self._host is None else self._host[start:stop]
        if self._made is None:
            return TextColumn(host)
        strings, device = self._made
        offsets = strings.offsets[start : stop + 1]
        size = int(offsets[-1] - offsets[0]) if host is None else int(TextColumn(host).lengths().sum())
        return TextColumn(host, (Strings(offsets, strings.data, size), device))

    @staticmethod
    def concat(columns: Sequence[TextColumn]) -> TextColumn:
        """Joins columns on each side that has all of them; if there is none, on the host."""
        made = [column._made for column in columns if column._made]
        if len(made) < len(columns) or made[0][1].kind == "cpu":
            return TextColumn(pa.concat_arrays([column.arrow() for column in columns]))
        device = made[0][1]
        hosts = [column._host for column in columns if column._host is not None]
        host = pa.concat_arrays(hosts) if len(hosts) == len(columns) else None
        join = libcudf.concatenate if libcudf.serves(device) else Strings.concat
        return TextColumn(host, (join([strings for strings, _ in made], device), device))
