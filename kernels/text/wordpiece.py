"""WordPiece tokens of UTF-8 captions, as the `tokenizers` library makes them for lower-case BERT vocabularies.

Each code point is looked up in a table made here once: what the normaliser leaves of it, and whether that ends a
word. Each word is then matched piece by piece in a trie, kept as a hash table. Text never becomes [CLS] and the like.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from danqing.kernels.portable import Launcher, inlined, kernel
from danqing.kernels.text.strings import decode_one

LONGEST = 100
"""Characters of the longest word that is looked up; a longer one is [UNK]."""
MARK = "##"
"""What the vocabulary writes before a piece that continues a word."""

# An entry of the character table: kind | code point << SHIFT | rank << RANK. The rank is half the canonical combining
# class of a mark that stays (halved, those classes still differ and fit); SEVERAL has an index into the table of runs
# in place of the code point.
DROP, SPACE, ALONE, KEEP, FENCE, SEVERAL = range(6)
KIND, SHIFT, RANK = 7, 3, 24
CODE = (1 << 21) - 1

# Trie: the two roots and the columns of an edge.
WORD, CONTINUATION = 0, 1
NODE, CHARACTER, CHILD, PIECE = range(4)
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio, as int64: spreads neighbouring keys


class Tables(NamedTuple):
    """What the kernel looks up, read-only.

    characters: int32 (0x110000,), an entry a code point;
    runs: int32 (…,), the entries of code points that become several, each run closed by DROP;
    edges: int32 (2^n, 4), open addressing: node, character, child and the id of the piece that ends there, or -1;
    special: int32 (4,), the ids of [CLS], [SEP], [PAD] and [UNK].
    """

    characters: np.ndarray
    runs: np.ndarray
    edges: np.ndarray
    special: np.ndarray


def _ranges(text: str) -> frozenset[int]:
    """Code points of hexadecimal ranges: "A B-D"."""
    bounds = [[int(bound, 16) for bound in part.split("-")] for part in text.split()]
    return frozenset(code for part in bounds for code in range(part[0], part[-1] + 1))


# The library knows categories as of Unicode 8, combining classes as of 9, and letter case as of 17, whatever Python
# knows. These ranges hold every mark, punctuation and decomposition added since 8 (up to 18), and none older.
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
# As the library has it: without 2B820-2B91F.
_HAN = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF)),
    *((0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0x2F800, 0x2FA1F)),
)


def lower_case(text: str) -> str:
    """Lower case letter by letter, as the `tokenizers` library makes it: no sigma of its own ends a word."""
    return text.translate(_LOWER | _SIGMA).lower()


def _category(code: int) -> str:
    return "Lo" if code in _NEWER else _RECLASSIFIED.get(code) or unicodedata.category(chr(code))


def _combining(code: int) -> int:
    return 0 if code in _NEWER and code not in _MARKS_OF_9 else unicodedata.combining(chr(code))


def _entries(code: int) -> list[int]:
    """What becomes of one code point: cleaned, taken apart (NFD), without accents, in lower case."""
    category = _category(code)
    if category[0] == "Z" or code in (0x9, 0xA, 0xD):
        return [SPACE]
    if category in ("Cc", "Cf", "Co", "Cs") or code == 0xFFFD:
        return []
    han = any(first <= code <= last for first, last in _HAN)
    out = []
    for part in map(ord, chr(code) if code in _NEWER else unicodedata.normalize("NFD", chr(code))):
        if _category(part) == "Mn":
            # A mark without a class takes no part in canonical order and, though dropped, parts those before and after.
            out += [FENCE] if not _combining(part) else []
            continue
        for small in [_LOWER[part]] if part in _LOWER else map(ord, chr(part).lower()):
            alone = han or _category(small)[0] == "P" or chr(small) in string.punctuation
            out.append((ALONE if alone else KEEP) | small << SHIFT | _combining(small) // 2 << RANK)
    return out


@cache
def _characters() -> tuple[np.ndarray, np.ndarray]:
    """`characters` and `runs` of Tables; made once a process, for it takes a second."""
    characters = np.arange(0x110000, dtype=np.int32) << SHIFT | KEEP
    runs = [DROP]
    for code in (*range(0x30000), *range(0xE0000, 0x110000)):  # planes 3 to 13 stay as they are
        entries = _entries(code)
        if len(entries) > 1:
            characters[code] = SEVERAL | len(runs) << SHIFT
            runs += [*entries, DROP]
        else:
            characters[code] = entries[0] if entries else DROP
    return characters, np.array(runs, np.int32)


def build_tables(vocabulary: Sequence[str], special: Sequence[int]) -> Tables:
    """Tables of a vocabulary.

    Args:
        vocabulary: pieces in the order of their ids; of equal ones the last counts.
        special: ids of [CLS], [SEP], [PAD] and [UNK].
    """
    edges: dict[tuple[int, int], list[int]] = {}  # (node, character) → [child, id of the piece that ends there]
    for index, piece in enumerate(vocabulary):
        continues = piece.startswith(MARK)
        node, edge = CONTINUATION if continues else WORD, [0, 0]
        for character in map(ord, piece.removeprefix(MARK)):
            edge = edges.setdefault((node, character), [len(edges) + 2, -1])
            node = edge[0]
        edge[1] = index
    slots = 1 << (4 * len(edges)).bit_length()  # at most a quarter full: most look-ups end where they begin
    table = np.full((slots, 4), -1, np.int32)
    for (node, character), edge in edges.items():
        slot = _slot(node, character, slots)
        while table[slot, NODE] >= 0:
            slot = (slot + 1) % slots
        table[slot] = node, character, *edge
    return Tables(*_characters(), table, np.array(special, np.int32))


@inlined
def _slot(node: int, character: int, slots: int) -> int:
    """Where to begin looking for an edge."""
    return ((node << 21 | character) * GOLDEN >> 32) & (slots - 1)


@inlined
def _find(edges: np.ndarray, node: int, character: int) -> int:
    """Row of the edge, or -1."""
    slot = _slot(node, character, edges.shape[0])
    while edges[slot, NODE] >= 0:
        if edges[slot, NODE] == node and edges[slot, CHARACTER] == character:
            return slot
        slot = (slot + 1) & (edges.shape[0] - 1)
    return -1


@inlined
def _append(word: np.ndarray, length: int, fence: int, entry: int, characters: np.ndarray) -> int:
    """Adds a character to the word and returns its new length, which ends at LONGEST + 1.

    A mark goes before those of a higher class that precede it (canonical order), but not beyond the fence.
    """
    if length >= LONGEST:
        return LONGEST + 1
    place, rank = length, entry >> RANK
    if rank > 0:
        while place > fence and characters[word[place - 1]] >> RANK > rank:
            word[place] = word[place - 1]
            place -= 1
    word[place] = entry >> SHIFT & CODE
    return length + 1


@inlined
def _write(
    word: np.ndarray, length: int, edges: np.ndarray, unknown: int, out: np.ndarray, kept: int, room: int
) -> int:
    """Writes the word's pieces, each the longest there is, after the `kept` tokens of `out`; returns their new number.

    The whole word is read even where the room ends within it: a word that does not come apart is one [UNK].
    """
    start, count, known = 0, kept, length <= LONGEST
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
        if count < room:
            out[count] = piece
        count, start = count + 1, stop
    if not known:
        out[kept] = unknown  # if there is no room, this is where [SEP] will be
        count = kept + 1
    return min(count, room)


@kernel
def tokenize(
    first: int,
    last: int,
    step: int,
    offsets: np.ndarray,
    data: np.ndarray,
    characters: np.ndarray,
    runs: np.ndarray,
    edges: np.ndarray,
    special: np.ndarray,
    scratch: np.ndarray,
    ids: np.ndarray,
    lengths: np.ndarray,
    unknown: np.ndarray,
) -> None:
    """Token ids of rows of UTF-8 text; time is linear in the bytes, and a row ends as soon as it is full.

    Args:
        offsets, data: int64 (rows + 1,) and uint8 (bytes,), as in an Arrow string column. What is not UTF-8 is
            dropped, as U+FFFD is.
        characters, runs, edges, special: the fields of Tables.
        scratch: int32 (rows, LONGEST), overwritten.
        ids: int32 (rows, max_length), filled with [CLS], the first max_length - 2 tokens, [SEP], then [PAD].
        lengths: int32 (rows,), filled with the tokens before [PAD].
        unknown: int32 (rows,), filled with the number of [UNK] among the tokens kept, not of those cut off.
    """
    word = scratch[first]  # one a thread: `first` is its own on either device
    room = ids.shape[1] - 1
    for row in range(first, last, step):
        out = ids[row]
        out[0] = special[0]
        at, end = offsets[row], offsets[row + 1]
        kept, length, fence, run = 1, 0, 0, 0
        while kept < room:
            if run > 0:
                entry = runs[run]
                run = run + 1 if entry != DROP else 0
            elif at < end:
                code, size = decode_one(data, at, end)
                entry = characters[code]
                at += size
            else:
                break
            kind = entry & KIND
            if kind == KEEP:
                length = _append(word, length, fence, entry, characters)
            elif kind == FENCE:
                fence = length
            elif kind == SEVERAL:
                run = entry >> SHIFT
            elif kind != DROP:  # SPACE or ALONE
                kept = _write(word, length, edges, special[3], out, kept, room)
                length, fence = 0, 0
                if kind == ALONE:
                    word[0] = entry >> SHIFT & CODE
                    kept = _write(word, 1, edges, special[3], out, kept, room)
        kept = _write(word, length, edges, special[3], out, kept, room)
        missed = 0
        for place in range(1, kept):
            missed += out[place] == special[3]
        out[kept] = special[1]
        out[kept + 1 :] = special[2]
        lengths[row] = kept + 1
        unknown[row] = missed


def token_ids(device: Launcher, tables: Tables, offsets: Any, data: Any, max_length: int, xp: Any = np) -> tuple:
    """`tokenize` with its outputs allocated; all arrays are the device's, made with its array library `xp`.

    Returns:
        int32 ids (rows, max_length), int32 lengths (rows,), int32 numbers of [UNK] (rows,).
    """
    rows = len(offsets) - 1
    scratch, ids = xp.empty((rows, LONGEST), xp.int32), xp.empty((rows, max_length), xp.int32)
    lengths, unknown = xp.empty(rows, xp.int32), xp.empty(rows, xp.int32)
    if rows:
        tokenize.launch(device, rows, offsets, data, *tables, scratch, ids, lengths, unknown)
    return ids, lengths, unknown
