"""UTF-8 in kernels: code points of bytes, and back."""

from __future__ import annotations

import numpy as np

from danqing.engine.core.strings import Strings
from danqing.kernels.portable import ArrayLauncher, inlined, kernel

REPLACEMENT = 0xFFFD
"""Code point that replaces bytes that are not UTF-8."""


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


@inlined
def encoded_size(code):
    """Returns the number of bytes of a code point in UTF-8."""
    return 1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)


def has_malformed(device: ArrayLauncher, text: Strings) -> bool:
    """Whether a row has bytes that are not UTF-8; waits for the device.

    Args:
        device: holds the text.
        text: the rows.
    """
    found = device.xp.empty(text.rows, np.bool_)
    find_malformed.launch(device, text.rows, text.of_one_type(), found)
    return bool(found.any())


@kernel
def find_malformed(first, last, step, text, out):
    """Writes whether each row has bytes that are not UTF-8 to `out`, bool (rows,)."""
    for row in range(first, last, step):
        at, stop = text.offsets[row], text.offsets[row + 1]
        found = False
        while at < stop and not found:
            code, size = decode_one(text.data, at, stop)
            found = code == REPLACEMENT and size == 1
            at += size
        out[row] = found


@inlined
def scratch_start(text, row, first, step):
    """Returns where the scratch memory of a row begins: one entry per byte and one more per row.

    On a CPU a thread runs consecutive rows, first to last, all in the memory of the first one, which stays in a cache.
    It does not overflow: up to the thread's last row, there is room for all of them.
    """
    place = first if step == 1 else row
    return np.int64(text.offsets[place]) - np.int64(text.offsets[0]) + place


@kernel
def find_unknown(first, last, step, text, known, out):
    """Writes whether each row has a character that is not in a set, or consists of spaces.

    Args:
        text: `Strings`, with int64 offsets.
        known: bool (0x110000,), the set.
        out: bool (rows,), output.
    """
    for row in range(first, last, step):
        at, stop = text.offsets[row], text.offsets[row + 1]
        is_blank, is_known = True, True
        while at < stop and is_known:
            code, size = decode_one(text.data, at, stop)
            is_known = known[code]
            is_blank = is_blank and code == 32
            at += size
        out[row] = is_blank or not is_known
