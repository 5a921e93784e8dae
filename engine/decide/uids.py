"""Uids in memory: 128-bit numbers as two uint64, since a Python string of 32 hex digits takes 81 bytes."""

from __future__ import annotations

import binascii

import numpy as np
import pyarrow as pa


def numbers_of(uids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Converts uids to numbers: uint64 (rows, 2), the upper and the lower half; zeros for a null.

    >>> numbers_of(pa.array(["0" * 31 + "a", None])).tolist()
    [[0, 10], [0, 0]]
    """
    text = uids.fill_null("0" * 32).cast(pa.binary())
    joined = b"".join(text.to_pylist())
    return np.frombuffer(binascii.unhexlify(joined), ">u8").astype(np.uint64).reshape(-1, 2)


def texts_of(numbers: np.ndarray) -> list[str]:
    """Converts numbers, uint64 (rows, 2), to uids of 32 hex digits.

    >>> texts_of(np.array([[0, 10]], np.uint64))
    ['0000000000000000000000000000000a']
    """
    digits = numbers.astype(">u8").tobytes().hex()
    return [digits[start : start + 32] for start in range(0, len(digits), 32)]
