"""Sets of words as hash tables of their prefixes: one probe per character, the same table on both devices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from danqing.kernels.compiled import cached
from danqing.kernels.portable import inlined

# An entry holds, from the top bit: the node's value (20 bits), its parent's position (22), the character (21), so that
# one read of a large table gives all of a prefix. A node is position << 20 | value.
VALUE_BITS, CODE_BITS, KEY_BITS = 20, 21, 43
VALUE, CODE, KEY = (1 << VALUE_BITS) - 1, (1 << CODE_BITS) - 1, (1 << KEY_BITS) - 1
EMPTY = -1
ROOT = (1 << KEY_BITS - CODE_BITS) - 1
"""The parent's position of first characters."""
ROOT_NODE = ROOT << VALUE_BITS
"""The node of the empty prefix."""
Index = np.uintp
"""Index type of inner loops: unsigned, so that Numba does not test for negative indices."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: spreads neighbouring keys (Knuth)


class Trie(NamedTuple):
    """A set of words, each with a value.

    Attributes:
        roots: int64 (65536,), node of each first character of the Basic Multilingual Plane, or `EMPTY`.
        entries: int64 (2^k,), hash table with open addressing; unused entries are `EMPTY`.
    """

    roots: np.ndarray
    entries: np.ndarray


@inlined
def first_slot(entries, node, code):
    """Returns the first position to probe for the child of `node` by a character."""
    key = node >> VALUE_BITS << CODE_BITS | np.int64(code)
    return np.int64((np.uint64(key) * GOLDEN) >> np.uint64(40)) & (entries.size - 1)


@inlined
def child(entries, node, code):
    """Returns the node that follows `node` by one character, or `EMPTY`; its value is `node & VALUE`."""
    key = node >> VALUE_BITS << CODE_BITS | np.int64(code)
    at = first_slot(entries, node, code)
    entry = entries[Index(at)]
    while entry & KEY != key:
        if entry == EMPTY:
            return np.int64(EMPTY)
        at = (at + 1) & (entries.size - 1)
        entry = entries[Index(at)]
    return np.int64(at << VALUE_BITS | entry >> KEY_BITS)


@inlined
def find(trie, chars, start, stop):
    """Returns the node of chars[start:stop], or `EMPTY`."""
    if chars[start] > 0xFFFF:
        return np.int64(EMPTY)
    entries = trie.entries
    node = trie.roots[chars[start]]
    at = start + 1
    while at < stop and node != EMPTY:
        node = child(entries, node, chars[at])
        at += 1
    return node


@inlined
def longest_word(chars, at, count, entries):
    """Finds the longest word that begins at chars[at].

    Returns:
        Its value, or 0, and the position after it, or after chars[at].
    """
    node = np.int64(ROOT_NODE)
    value, stop = np.int64(0), at + 1
    while at < count:
        node = child(entries, node, chars[at])
        if node == EMPTY:
            break
        at += 1
        if node & VALUE:
            value, stop = node & VALUE, at
    return value, stop


def build(values: dict[str, int]) -> Trie:
    """Makes a trie, in host memory.

    Args:
        values: word → value, 1 … 2^20 - 1. Prefixes that are not words get the value 0.

    Raises:
        ValueError: an empty word, one that begins outside the Basic Multilingual Plane, or a value out of range.
    """
    if any(word[:1] > "\uffff" for word in values):
        raise ValueError("words must start in the Basic Multilingual Plane")
    return _fill(values)


def build_entries(values: dict[str, int]) -> np.ndarray:
    """Makes the `entries` of a trie, whose words are found from `ROOT_NODE`; they may begin with any character.

    Args:
        values: see `build`.

    Raises:
        ValueError: an empty word, or a value out of range.
    """
    return _fill(values).entries


def _fill(values: dict[str, int]) -> Trie:
    words = list(values)
    chars = np.frombuffer("".join(words).encode("utf-32-le"), np.int32)
    ends = np.cumsum([len(word) for word in words], dtype=np.int64)
    begins = np.concatenate([np.zeros(1, np.int64), ends])
    word_values = np.array([values[word] for word in words], np.int64)
    if (np.diff(begins) == 0).any():
        raise ValueError("words must not be empty")
    if ((word_values < 1) | (word_values > VALUE)).any():
        raise ValueError(f"values must lie in 1 … {VALUE}")
    size = 16
    while True:  # at most half full, so that probes stay short
        roots, entries, used = _insert(chars, begins, word_values, size)
        if 2 * used <= size:
            return Trie(roots, entries)
        size *= 2


@cached(njit)
def _insert(chars: np.ndarray, begins: np.ndarray, values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Fills tables of `size` entries; returns roots, entries and the number used, or `size` if half are not enough."""
    entries = np.full(size, EMPTY, np.int64)
    roots = np.full(65536, EMPTY, np.int64)
    used = 0
    for word in range(values.size):
        node = np.int64(ROOT_NODE)
        for at in range(begins[word], begins[word + 1]):
            following = child(entries, node, chars[at])
            if following == EMPTY:
                if 2 * (used + 1) > size:
                    return roots, entries, size
                following = _add(entries, node, chars[at])
                used += 1
            node = following
        position = node >> VALUE_BITS
        entries[position] = values[word] << KEY_BITS | entries[position] & KEY
    for position in range(size):
        entry = entries[position]
        if entry != EMPTY and entry >> CODE_BITS & ROOT == ROOT and entry & CODE < roots.size:
            roots[entry & CODE] = position << VALUE_BITS | entry >> KEY_BITS
    return roots, entries, used


@cached(njit)
def _add(entries: np.ndarray, node: int, code: int) -> int:
    """Adds the child of `node` by a character; returns it."""
    at = first_slot(entries, node, code)
    while entries[at] != EMPTY:
        at = (at + 1) & (entries.size - 1)
    entries[at] = node >> VALUE_BITS << CODE_BITS | np.int64(code)
    return np.int64(at << VALUE_BITS)
