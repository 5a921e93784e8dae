"""Uids and digests in memory: 128-bit numbers as two uint64. A Python string of 32 hex digits takes 81 bytes."""

from __future__ import annotations

import binascii

import numpy as np
import pyarrow as pa
import xxhash


def numbers_of(uids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Converts uids to numbers: uint64 (rows, 2), the upper and the lower half; zeros for a null.

    >>> numbers_of(pa.array(["0" * 31 + "a", None])).tolist()
    [[0, 10], [0, 0]]
    """
    text = uids.fill_null("0" * 32).cast(pa.binary())
    return _numbers(binascii.unhexlify(b"".join(text.to_pylist())))


def digests_of(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Hashes texts: uint64 (rows, 2), XXH3 in 128 bits.

    Any two of 10⁹ different texts have the same digest with a probability of 1.5 · 10⁻²¹.

    >>> one, same, other = digests_of(pa.array(["cat", "cat", "dog"])).tolist()
    >>> one == same, one == other
    (True, False)
    """
    return _numbers(b"".join(map(xxhash.xxh3_128_digest, texts.cast(pa.large_binary()).to_pylist())))


def _numbers(digests: bytes) -> np.ndarray:
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)


def texts_of(numbers: np.ndarray) -> list[str]:
    """Converts numbers, uint64 (rows, 2), to uids of 32 hex digits.

    >>> texts_of(np.array([[0, 10]], np.uint64))
    ['0000000000000000000000000000000a']
    """
    digits = numbers.astype(">u8").tobytes().hex()
    return [digits[start : start + 32] for start in range(0, len(digits), 32)]
