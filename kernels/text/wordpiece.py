"""WordPiece tokens of UTF-8 captions, equal to those of the `tokenizers` library for lower-case BERT vocabularies.

A table gives, for each code point, its normalised form and whether it ends a word. Each word is then matched piece by
piece in a trie, which is a hash table. Text such as "[CLS]" never becomes a special token.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from danqing.engine.core.strings import Strings
from danqing.kernels.portable import ArrayLauncher, inlined, kernel
from danqing.kernels.text.trie import GOLDEN
from danqing.kernels.text.utf8 import decode_one

MAX_WORD_CHARACTERS = 100
"""Longer words become [UNK]."""
CONTINUATION_PREFIX = "##"
"""Prefix, in the vocabulary, of pieces that continue a word."""

# An entry of the character table: kind | code point << CODE_SHIFT | rank << RANK_SHIFT. The rank is half the canonical
# combining class of a mark that is kept (the halves are still distinct, and fit). SEVERAL has an index into the table
# of sequences in place of the code point.
DROP = 0  # has no effect
SPACE = 1  # ends a word
ISOLATED = 2  # is a word
KEEP = 3  # is part of a word
FENCE = 4  # is dropped, but marks before and after it are not reordered across it
SEVERAL = 5  # becomes a sequence of entries
KIND_MASK = 7
CODE_SHIFT, RANK_SHIFT = 3, 24
CODE_MASK = (1 << 21) - 1

# Trie: its two roots, and the columns of an edge.
WORD, CONTINUATION = 0, 1
NODE, CHARACTER, CHILD, PIECE = range(4)


class WordPieceTables(NamedTuple):
    """Look-up tables of `tokenize`.

    Attributes:
        characters: int32 (0x110000,), an entry per code point.
        sequences: int32, the entries of code points that become several; each sequence ends with DROP.
        edges: int32 (2^n, 4), hash table with open addressing: node, character, child, and the id of the piece that
            ends at the child, or -1.
        special: int32 (4,), the ids of [CLS], [SEP], [PAD] and [UNK].
    """

    characters: np.ndarray
    sequences: np.ndarray
    edges: np.ndarray
    special: np.ndarray


def _ranges(text: str) -> frozenset[int]:
    """Returns the code points of hexadecimal ranges, such as "A B-D"."""
    bounds = [[int(bound, 16) for bound in part.split("-")] for part in text.split()]
    return frozenset(code for part in bounds for code in range(part[0], part[-1] + 1))


# The library has the categories of Unicode 8, the combining classes of 9 and the letter case of 17; Python's version
# differs. These ranges contain all marks, punctuation and decompositions added after 8 (up to 18), and no older ones.
_NEWER = _ranges(
    "5C8-5C9 61D 7FD 890-8E2 9FD-9FE A76 AFA-AFF B53-B55 C04-C3C C77 C84 D00 D3B-D3C D81 EBA ECE 1715 180F-1886 "
    "1ABF-1AF0 1B4E-1B4F 1B7D-1B7F 1DF6-1DFB 2E43-2E63 A82C A8C5 A8FF A9BD 105C9-105E4 10D24-10F89 11070-11074 "
    "110C2-110CD 111CF 1123E-11241 1133B 11383-1145E 11660-1166C 116B9 1182F-11FFF 12FF1-1612F 16D68-16F4F "
    "16FE2-16FF1 1CF00-1D128 1D250-1D281 1E000-1E6F5 1E944-1E95F"
)
_MARKS_OF_9 = _ranges("8D4-8E1 1DFB 11442-11446 11C3F 1E000-1E02A 1E944-1E94A")
_RECLASSIFIED = {0x166D: "Po", 0x1734: "Mn", 0x111C9: "Po"}
_LOWER = (
    {0x1C89: 0x1C8A, 0xA7CB: 0x264, 0xA7DC: 0x19B}
    | {code: code + 1 for code in (0xA7CC, 0xA7CE, 0xA7D2, 0xA7D4, 0xA7DA)}
    | {code: code + 0x20 for code in range(0x10D50, 0x10D66)}
    | {code: code + 0x1B for code in range(0x16EA0, 0x16EB9)}
)
_SIGMA = {0x3A3: 0x3C3}
_SMALL = {chr(code): chr(small) for code, small in (_LOWER | _SIGMA).items()}
_DIFFERENT = re.compile(f"[{''.join(_SMALL)}]")
# The library's ranges, which lack 2B820-2B91F.
_HAN = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF)),
    *((0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0x2F800, 0x2FA1F)),
)


def lower_case(text: str) -> str:
    """Converts to lower case letter by letter, equal to the `tokenizers` library: a final sigma is σ, not ς."""
    return _DIFFERENT.sub(lambda found: _SMALL[found[0]], text).lower()


def _category(code: int) -> str:
    return "Lo" if code in _NEWER else _RECLASSIFIED.get(code) or unicodedata.category(chr(code))


def _combining(code: int) -> int:
    return 0 if code in _NEWER and code not in _MARKS_OF_9 else unicodedata.combining(chr(code))


def _entries(code: int) -> list[int]:
    """Returns the entries of one code point after cleaning, decomposition (NFD), removal of accents and lower case."""
    category = _category(code)
    if category[0] == "Z" or code in (0x9, 0xA, 0xD):
        return [SPACE]
    if category in ("Cc", "Cf", "Co", "Cs") or code == 0xFFFD:
        return []
    han = any(first <= code <= last for first, last in _HAN)
    out = []
    for part in map(ord, chr(code) if code in _NEWER else unicodedata.normalize("NFD", chr(code))):
        if _category(part) == "Mn":
            # A mark of class 0 takes no part in canonical ordering; although dropped, it separates other marks.
            out += [FENCE] if not _combining(part) else []
            continue
        for small in [_LOWER[part]] if part in _LOWER else map(ord, chr(part).lower()):
            isolated = han or _category(small)[0] == "P" or chr(small) in string.punctuation
            kind = ISOLATED if isolated else KEEP
            out.append(kind | small << CODE_SHIFT | _combining(small) // 2 << RANK_SHIFT)
    return out


@cache
def _characters() -> tuple[np.ndarray, np.ndarray]:
    """Makes `characters` and `sequences` of the tables, once per process, since it takes half a second."""
    characters = np.arange(0x110000, dtype=np.int32) << CODE_SHIFT | KEEP
    sequences = [DROP]
    for first in (0xF0000, 0x100000):
        characters[first : first + 0xFFFE] = DROP  # private use
    for code in (*range(0x30000), *range(0xE0000, 0xE1000)):  # no other character is assigned
        entries = _entries(code)
        if len(entries) > 1:
            characters[code] = SEVERAL | len(sequences) << CODE_SHIFT
            sequences += [*entries, DROP]
        else:
            characters[code] = entries[0] if entries else DROP
    return characters, np.array(sequences, np.int32)


def build_tables(vocabulary: Sequence[str], special: Sequence[int]) -> WordPieceTables:
    """Makes the tables of a vocabulary, in host memory.

    Args:
        vocabulary: pieces in the order of their ids; the last of equal ones counts.
        special: ids of [CLS], [SEP], [PAD] and [UNK].
    """
    edges: dict[tuple[int, int], list[int]] = {}  # (node, character) → [child, id of the piece that ends there]
    for index, piece in enumerate(vocabulary):
        continues = piece.startswith(CONTINUATION_PREFIX)
        node, edge = CONTINUATION if continues else WORD, [0, 0]
        for character in map(ord, piece.removeprefix(CONTINUATION_PREFIX)):
            edge = edges.setdefault((node, character), [len(edges) + 2, -1])
            node = edge[0]
        edge[1] = index
    slots = 1 << (4 * len(edges)).bit_length()  # at most a quarter full: most searches end at the first slot
    table = np.full((slots, 4), -1, np.int32)
    with np.errstate(over="ignore"):  # of the products in `_slot`, whose upper bits are not needed
        for (node, character), edge in edges.items():
            slot = _slot(node, character, slots)
            while table[slot, NODE] >= 0:
                slot = (slot + 1) % slots
            table[slot] = node, character, *edge
    return WordPieceTables(*_characters(), table, np.array(special, np.int32))


@inlined
def _slot(node: int, character: int, slots: int) -> int:
    """Returns the first slot to probe for an edge."""
    key = np.uint64(np.int64(node) << 21 | np.int64(character))
    return np.int64(key * GOLDEN >> np.uint64(32)) & (slots - 1)


@inlined
def _find(edges: np.ndarray, node: int, character: int) -> int:
    """Returns the slot of an edge, or -1."""
    slot = _slot(node, character, edges.shape[0])
    while edges[slot, NODE] >= 0:
        if edges[slot, NODE] == node and edges[slot, CHARACTER] == character:
            return slot
        slot = (slot + 1) & (edges.shape[0] - 1)
    return -1


@inlined
def _append(word: np.ndarray, length: int, fence: int, entry: int, characters: np.ndarray) -> int:
    """Adds a character to the word and returns the word's new length, at most MAX_WORD_CHARACTERS + 1.

    A mark is inserted before preceding marks of a higher class (canonical ordering), but not before position `fence`.
    """
    if length >= MAX_WORD_CHARACTERS:
        return MAX_WORD_CHARACTERS + 1
    place, rank = length, entry >> RANK_SHIFT
    if rank > 0:
        while place > fence and characters[word[place - 1]] >> RANK_SHIFT > rank:
            word[place] = word[place - 1]
            place -= 1
    word[place] = entry >> CODE_SHIFT & CODE_MASK
    return length + 1


@inlined
def _write(
    word: np.ndarray, length: int, edges: np.ndarray, unknown: int, out: np.ndarray, kept: int, limit: int
) -> int:
    """Writes the word's pieces, each the longest possible, after the first `kept` tokens of `out`.

    The whole word is matched even if it exceeds `limit`: a word with a part that matches no piece is one [UNK].

    Returns:
        The new number of tokens, at most `limit`.
    """
    start, count, known = 0, kept, length <= MAX_WORD_CHARACTERS
    while known and start < length:
        node, piece, stop = CONTINUATION if start else WORD, -1, start
        for place in range(start, length):
            slot = _find(edges, node, word[place])
            if slot < 0:
                break
            node = edges[slot, CHILD]
            if edges[slot, PIECE] >= 0:
                piece, stop = edges[slot, PIECE], place + 1
        known = piece >= 0
        if count < limit:
            out[count] = piece
        count, start = count + 1, stop
    if not known:
        out[kept] = unknown  # if `kept` is the limit, [SEP] overwrites it
        count = kept + 1
    return min(count, limit)


@kernel
def tokenize(
    first: int,
    last: int,
    step: int,
    offsets: np.ndarray,
    data: np.ndarray,
    characters: np.ndarray,
    sequences: np.ndarray,
    edges: np.ndarray,
    special: np.ndarray,
    scratch: np.ndarray,
    ids: np.ndarray,
    lengths: np.ndarray,
    unknown: np.ndarray,
) -> None:
    """Tokenizes rows of UTF-8 text. The time is linear in the bytes; the rest of a full row is not read.

    Args:
        offsets, data: int64 (rows + 1,) and uint8 (bytes,), see `Strings`. Bytes that are not UTF-8 are dropped.
        characters, sequences, edges, special: the fields of `WordPieceTables`.
        scratch: int32 (rows, MAX_WORD_CHARACTERS).
        ids: int32 (rows, max_length), output: [CLS], the first max_length - 2 tokens, [SEP], then [PAD].
        lengths: int32 (rows,), output: number of tokens before [PAD].
        unknown: int32 (rows,), output: number of [UNK] in `ids`.
    """
    limit = ids.shape[1] - 1
    for row in range(first, last, step):
        word, out = scratch[first], ids[row]  # `first` is unique per thread
        out[0] = special[0]
        at, end = offsets[row], offsets[row + 1]
        kept, length, fence, sequence = 1, 0, 0, 0
        while kept < limit:
            if sequence > 0:
                entry = sequences[sequence]
                sequence = sequence + 1 if entry != DROP else 0
            elif at < end:
                code, size = decode_one(data, at, end)
                entry = characters[code]
                at += size
            else:
                break
            kind = entry & KIND_MASK
            if kind == KEEP:
                length = _append(word, length, fence, entry, characters)
            elif kind == FENCE:
                fence = length
            elif kind == SEVERAL:
                sequence = entry >> CODE_SHIFT
            elif kind != DROP:  # SPACE or ISOLATED
                kept = _write(word, length, edges, special[3], out, kept, limit)
                length, fence = 0, 0
                if kind == ISOLATED:
                    word[0] = entry >> CODE_SHIFT & CODE_MASK
                    kept = _write(word, 1, edges, special[3], out, kept, limit)
        kept = _write(word, length, edges, special[3], out, kept, limit)
        missed = 0
        for place in range(1, kept):
            missed += out[place] == special[3]
        out[kept] = special[1]
        out[kept + 1 :] = special[2]
        lengths[row] = kept + 1
        unknown[row] = missed


def token_ids(device: ArrayLauncher, tables: WordPieceTables, text: Strings, max_length: int) -> tuple:
    """Tokenizes rows of text, see `tokenize`.

    Args:
        device: runs the kernel.
        tables: on the device.
        text: the rows, with int64 offsets, on the device.
        max_length: number of tokens of a row, [CLS] and [SEP] included.

    Returns:
        On the device: ids int32 (rows, max_length), lengths int32 (rows,), numbers of [UNK] int32 (rows,).
    """
    xp, rows = device.xp, text.rows
    scratch, ids = xp.empty((rows, MAX_WORD_CHARACTERS), np.int32), xp.empty((rows, max_length), np.int32)
    lengths, unknown = xp.empty(rows, np.int32), xp.empty(rows, np.int32)
    tokenize.launch(device, rows, text.offsets, text.data, *tables, scratch, ids, lengths, unknown)
    return ids, lengths, unknown
