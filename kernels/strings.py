"""Text as kernels see it: one buffer of UTF-8 bytes and where each row begins, as Arrow and cuDF keep it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from kernels.portable import inlined

REPLACEMENT = 0xFFFD
"""What stands for bytes that are not UTF-8."""


class Strings(NamedTuple):
    """Rows of text on a device.

    `offsets`: int32 or int64 (rows + 1,); `data`: uint8 (bytes,). Row i is data[offsets[i]:offsets[i + 1]].
    """

    offsets: Any
    data: Any

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

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
        return Strings(begins, np.frombuffer(data or b"", np.uint8))

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
        lead = np.int32(data[at])
        if lead < 0x80:
            chars[count] = lead
            at += 1
        else:
            length, code, least = 1, REPLACEMENT, 0
            if lead >= 0xF0 and lead < 0xF5:
                length, code, least = 4, lead & 0x07, 0x10000
            elif lead >= 0xE0 and lead < 0xF0:
                length, code, least = 3, lead & 0x0F, 0x800
            elif lead >= 0xC2 and lead < 0xE0:
                length, code, least = 2, lead & 0x1F, 0x80
            whole = at + length <= stop
            if whole:
                for position in range(at + 1, at + length):
                    byte = np.int32(data[position])
                    if byte & 0xC0 != 0x80:
                        whole = False
                    code = code << 6 | byte & 0x3F
            if not whole or code < least or code > 0x10FFFF or (code >= 0xD800 and code < 0xE000):
                length, code = 1, REPLACEMENT
            chars[count] = code
            at += length
        count += 1
    return count


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
