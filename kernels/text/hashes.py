"""Hashes of texts: of the whole text, to find equal ones, and of its shingles, to find similar ones (MinHash).

The shingles of a text are the sets of `SHINGLE_CHARACTERS` consecutive characters (code points); a shorter text that is
not empty is one shingle. The similarity of two texts is the Jaccard index of their shingles: the number that both have
÷ the number that at least one has. For a random hash function, the probability that the least hashes of two sets are
equal is their Jaccard index (Broder, 1997). The key of a band combines `BAND_HASHES` least hashes, and texts that share
the key of any band are compared (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from danqing.engine.core.strings import Strings
from danqing.kernels.neighbours.components import find_root, unite
from danqing.kernels.portable import ArrayLauncher, inlined, kernel
from danqing.kernels.text.utf8 import decode_one

HASH_DIGITS = 32
SHINGLE_CHARACTERS = 3
CODE_POINT_BITS = np.uint64(21)
SHINGLE_MASK = np.uint64((1 << (21 * SHINGLE_CHARACTERS)) - 1)
BAND_HASHES = 4
"""Least hashes of a band. More leave fewer candidates that are not similar, and need more bands."""
MAX_COMPARED = 256
"""Texts of one bucket that each text is compared with: the next ones. Bounds the work on crowds of similar texts."""
TOLERANCE = 1e-9
"""Of a Jaccard distance, for rounding: 0.3 × 10 shingles are not exactly 3."""

C1, C2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
FMIX1, FMIX2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)


@inlined
def _rotate(x, bits):
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@inlined
def mix64(x):
    """Returns MurmurHash3's 64-bit finalizer of a uint64: a bijection in which each bit depends on all bits."""
    x = (x ^ (x >> np.uint64(33))) * FMIX1
    x = (x ^ (x >> np.uint64(33))) * FMIX2
    return x ^ (x >> np.uint64(33))


@inlined
def mix32(x):
    """Returns MurmurHash3's 32-bit finalizer of a uint32."""
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    x = np.uint32((x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(x ^ (x >> np.uint32(16)))


@inlined
def _word(data, at, stop):
    """Returns the bytes data[at:stop], at most eight, as a little-endian uint64."""
    word = np.uint64(0)
    for place in range(min(stop - at, 8)):
        word |= np.uint64(data[at + place]) << np.uint64(8 * place)
    return word


@inlined
def _scrambled(word, factor, bits, other):
    return _rotate(word * factor, bits) * other


@kernel
def write_hashes(first, last, step, text, offsets, out):
    """Writes each row's MurmurHash3_x64_128 (seed 0) as 32 hex digits; nothing for an empty row.

    Args:
        text: `Strings`.
        offsets: int64 (rows + 1,), where each row's digits begin.
        out: uint8, output.
    """
    for row in range(first, last, step):
        begin, stop = np.int64(text.offsets[row]), np.int64(text.offsets[row + 1])
        if begin == stop:
            continue
        h1, h2 = np.uint64(0), np.uint64(0)
        at = begin
        while at + 16 <= stop:
            h1 = _rotate(h1 ^ _scrambled(_word(text.data, at, stop), C1, 31, C2), 27) + h2
            h1 = h1 * np.uint64(5) + np.uint64(0x52DCE729)
            h2 = _rotate(h2 ^ _scrambled(_word(text.data, at + 8, stop), C2, 33, C1), 31) + h1
            h2 = h2 * np.uint64(5) + np.uint64(0x38495AB5)
            at += 16
        length = np.uint64(stop - begin)
        h1 = h1 ^ _scrambled(_word(text.data, at, stop), C1, 31, C2) ^ length
        h2 = h2 ^ _scrambled(_word(text.data, at + 8, stop), C2, 33, C1) ^ length
        h1 += h2
        h2 += h1
        h1, h2 = mix64(h1), mix64(h2)
        h1 += h2
        h2 += h1
        place = offsets[row]
        for digit in range(HASH_DIGITS):
            half = h1 if digit < 16 else h2
            nibble = (half >> np.uint64(4 * (digit % 16 ^ 1))) & np.uint64(15)
            out[place + digit] = nibble + np.uint64(48 if nibble < 10 else 87)


def hash_texts(device: ArrayLauncher, text: Strings) -> Strings:
    """Hashes each row: MurmurHash3_x64_128 of its UTF-8 bytes, 32 hex digits as `mmh3.hash_bytes(text).hex()`.

    Args:
        device: holds the text.
        text: the rows.

    Returns:
        The hashes, on the device; an empty row for an empty row.
    """
    xp = device.xp
    offsets = xp.zeros(text.rows + 1, np.int64)
    xp.cumsum((text.offsets[1:] > text.offsets[:-1]) * np.int64(HASH_DIGITS), out=offsets[1:])
    size = int(offsets[-1])
    out = xp.empty(size, np.uint8)
    write_hashes.launch(device, text.rows, text, offsets, out)
    return Strings(offsets, out, size)


class Shingles(NamedTuple):
    """The distinct shingles of texts, as 32-bit hashes in ascending order.

    In two texts of 20 characters, hashes of different shingles are equal with a probability of 10^-7.

    Attributes:
        begins: int64 (rows,), position of each row's first hash.
        counts: int32 (rows,), distinct hashes of each row.
        hashes: uint32, with gaps between the rows.
    """

    begins: Any
    counts: Any
    hashes: Any


@kernel
def count_shingles(first, last, step, text, counts):
    """Counts the shingles of each row, repeated ones included, into `counts`, int32 (rows,)."""
    for row in range(first, last, step):
        at, stop = np.int64(text.offsets[row]), np.int64(text.offsets[row + 1])
        characters = 0
        while at < stop:
            at += decode_one(text.data, at, stop)[1]
            characters += 1
        counts[row] = max(characters - SHINGLE_CHARACTERS + 1, min(characters, 1))


@kernel
def write_shingles(first, last, step, text, shingles):
    """Writes the shingles of each row.

    Args:
        text: `Strings`.
        shingles: `Shingles`; `counts` has those of `count_shingles` and is updated.
    """
    for row in range(first, last, step):
        begin, count = shingles.begins[row], shingles.counts[row]
        if count == 0:
            continue
        hashes = shingles.hashes[begin : begin + count]
        at, stop = np.int64(text.offsets[row]), np.int64(text.offsets[row + 1])
        packed = np.uint64(0)  # the last characters, 21 bits each
        characters = 0
        while at < stop:
            code, size = decode_one(text.data, at, stop)
            packed = ((packed << CODE_POINT_BITS) | np.uint64(code)) & SHINGLE_MASK
            characters += 1
            at += size
            if characters >= SHINGLE_CHARACTERS or at == stop:
                hashes[max(characters - SHINGLE_CHARACTERS, 0)] = mix64(packed) >> np.uint64(32)
        _sort(hashes)
        distinct = 1
        for place in range(1, count):
            if hashes[place] != hashes[distinct - 1]:
                hashes[distinct] = hashes[place]
                distinct += 1
        shingles.counts[row] = distinct


@inlined
def _sort(values):
    """Sorts in place, by heapsort: without recursion or memory, and in n log n steps for every input."""
    size = values.size
    start, end = size // 2, size
    while end > 1:
        if start > 0:
            start -= 1
            value = values[start]
        else:
            end -= 1
            value = values[end]
            values[end] = values[0]
        node = start
        child = 2 * node + 1
        while child < end:
            if child + 1 < end and values[child + 1] > values[child]:
                child += 1
            if values[child] <= value:
                break
            values[node] = values[child]
            node = child
            child = 2 * node + 1
        values[node] = value


def find_shingles(device: ArrayLauncher, text: Strings) -> Shingles:
    """Finds the distinct shingles of each row.

    Args:
        device: holds the text.
        text: the rows.

    Returns:
        The shingles, on the device: 4 bytes a character, and 12 bytes a row.
    """
    xp = device.xp
    counts = xp.empty(text.rows, np.int32)
    count_shingles.launch(device, text.rows, text, counts)
    ends = xp.cumsum(counts, dtype=np.int64)
    shingles = Shingles(ends - counts, counts, xp.empty(int(ends[-1]) if text.rows else 0, np.uint32))
    write_shingles.launch(device, text.rows, text, shingles)
    return shingles


@kernel
def write_band_keys(first, last, step, shingles, band, keys):
    """Writes the key of each row's band, of `BAND_HASHES` least hashes, to `keys`, uint64 (rows,)."""
    for row in range(first, last, step):
        begin = shingles.begins[row]
        end = begin + shingles.counts[row]
        key = np.uint64(0)
        for number in range(BAND_HASHES):
            seed = mix32(np.uint32(band * BAND_HASHES + number + 1))
            least = np.uint32(0xFFFFFFFF)
            for at in range(begin, end):
                hashed = mix32(np.uint32(shingles.hashes[at] ^ seed))
                least = hashed if hashed < least else least
            key = mix64(key ^ np.uint64(least))
        keys[row] = key


@inlined
def jaccard_counts(shingles, a, b):
    """Returns the number of shingles that two rows share, and the number that at least one of them has."""
    at, other = shingles.begins[a], shingles.begins[b]
    end, other_end = at + shingles.counts[a], other + shingles.counts[b]
    total = end - at + other_end - other
    shared = np.int64(0)
    while at < end and other < other_end:
        x, y = shingles.hashes[at], shingles.hashes[other]
        shared += x == y
        at += x <= y
        other += y <= x
    return shared, total - shared


@kernel
def join_similar(first, last, step, shingles, keys, order, within, parent):
    """Unites the components of rows of one bucket whose Jaccard distance is at most `within`.

    Args:
        shingles: `Shingles`.
        keys: uint64 (rows,), in ascending order; rows of equal keys are a bucket.
        order: int64 (rows,), the row of each key.
        within: the distance, 0 to 1.
        parent: int64 (rows,), see `kernels.neighbours.components`.
    """
    for place in range(first, last, step):
        row, key = order[place], keys[place]
        count = shingles.counts[row]
        after, end = place + 1, min(place + 1 + MAX_COMPARED, keys.size)
        while after < end and keys[after] == key:
            other = order[after]
            after += 1
            least, most = min(count, shingles.counts[other]), max(count, shingles.counts[other])
            if most - least > within * most + TOLERANCE or find_root(parent, row) == find_root(parent, other):
                continue
            shared, union = jaccard_counts(shingles, row, other)
            if union - shared <= within * union + TOLERANCE:
                unite(parent, row, other)


@kernel
def find_most_similar(first, last, step, shingles, keys, order, begins, known, within, distance, nearest):
    """Finds the most similar known row of the bucket of each other row; of equally similar ones, the first.

    Args:
        shingles, keys, order, within: see `join_similar`; the rows of a bucket are in ascending order.
        begins: int64 (rows,), position in `keys` at which each key's bucket begins.
        known: the first `known` rows are known.
        distance: float64 (rows,), updated: the least Jaccard distance so far, infinite if there is none.
        nearest: int64 (rows,), updated: the row at that distance.
    """
    for place in range(first, last, step):
        row = order[place]
        if row < known:
            continue
        at, end = begins[place], min(begins[place] + MAX_COMPARED, place)
        while at < end and order[at] < known:
            other = order[at]
            at += 1
            shared, union = jaccard_counts(shingles, row, other)
            if union - shared > within * union + TOLERANCE:
                continue
            apart = (union - shared) / max(union, 1)
            if apart < distance[row] or (apart == distance[row] and other < nearest[row]):
                distance[row], nearest[row] = apart, other


@kernel
def measure_jaccard(first, last, step, left, right, shingles, out):
    """Computes the Jaccard distance of each pair; 0 for two empty texts.

    Args:
        left, right: int64 (pairs,), row numbers.
        shingles: `Shingles`.
        out: float64 (pairs,), output.
    """
    for pair in range(first, last, step):
        shared, union = jaccard_counts(shingles, left[pair], right[pair])
        out[pair] = (union - shared) / max(union, 1)
