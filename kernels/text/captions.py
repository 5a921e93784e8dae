"""Measures captions on their UTF-8 bytes: words, characters, information."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from danqing.engine.core.strings import Strings
from danqing.kernels.portable import ArrayLauncher, inlined, kernel, resident, workspace
from danqing.kernels.text.segmentation import ADJECTIVE, NOUN, STOP_WORD, VERB, Dictionary, SegmentScratch, segment
from danqing.kernels.text.trie import EMPTY, GOLDEN
from danqing.kernels.text.utf8 import decode, scratch_start

# Character classes: bits of a table of all code points (`engine.stages.characters.character_classes`).
LETTER, ALPHANUMERIC, HAN, KANA, HANGUL, LATIN, DIGIT, SPACE = (1 << bit for bit in range(8))
DROP, NARROW, JAPANESE, CHINESE, FORM, CONVERTED = (1 << bit for bit in range(8, 14))
CODE_POINTS = 0x110000

MAX_UNIT_CHARACTERS = 4  # of a unit whose repetition is measured


MEASURES = (
    "words", "nouns", "content_word_share", "stop_word_share", "text_entropy",
    "han_share", "kana_share", "latin_share", "digit_share", "symbol_share", "longest_repetition",
)  # fmt: skip
"""Columns of the result of `measure`; shares are in 0 … 1.

`words`: number of tokens with a letter, a digit or a Han character. Among the words: `nouns` (number),
`content_word_share` (nouns, verbs and adjectives), `stop_word_share`, `text_entropy` (-sum p log2 p over the distinct
words, in bits). Among the letters: `han_share`, `kana_share`, `latin_share`. Among the characters other than spaces:
`digit_share`, `symbol_share` (neither letter nor digit). `longest_repetition`: number of characters of the longest part
that repeats a unit of one to four characters.
"""


def allocate_scratch(device: ArrayLauncher, text: Strings) -> SegmentScratch:
    """Returns scratch memory to segment these rows."""
    size = text.size + text.rows
    kinds = (np.int32, np.float64, np.int32, np.uint8, np.uint8, np.uint8)
    return SegmentScratch(
        *(workspace(device, name, size, kind) for name, kind in zip(SegmentScratch._fields, kinds, strict=True))
    )


def measure(device: ArrayLauncher, text: Strings, words: Dictionary, classes: np.ndarray) -> Any:
    """Computes all measures of each row.

    Args:
        device: holds the text.
        text: the rows.
        words: jieba's tables, in host memory.
        classes: uint16 (CODE_POINTS,), character classes, in host memory.

    Returns:
        float32 (rows, measures) on the device, see `MEASURES`.
    """
    out = device.xp.empty((text.rows, len(MEASURES)), np.float32)
    table = workspace(device, "table", 2 * (text.size + text.rows), np.int32)
    tables = resident(device, words), resident(device, classes)
    measure_rows.launch(device, text.rows, text.of_one_type(), *tables, allocate_scratch(device, text), table, out)
    return out


def tokens(device: ArrayLauncher, text: Strings, words: Dictionary, hmm: bool = True) -> list[list[str]]:
    """Cuts each row into tokens, equal to `jieba.lcut`.

    Args:
        device: a CPU.
        text: the rows, in host memory.
        words: jieba's tables.
        hmm: as in `jieba.lcut`.
    """
    return [[line[a:b] for a, b in pairwise(bounds)] for line, bounds, _ in _cut(device, text, words, hmm)]


def content_words(device: ArrayLauncher, text: Strings, words: Dictionary) -> list[list[str]]:
    """Returns each row's nouns, verbs and adjectives, without stop words, in order.

    Args:
        device: a CPU.
        text: the rows, in host memory.
        words: jieba's tables.
    """
    out = []
    for line, bounds, kinds in _cut(device, text, words, True):
        is_content = (kinds & (NOUN | VERB | ADJECTIVE) != 0) & (kinds & STOP_WORD == 0)
        out.append([line[a:b] for (a, b), kept in zip(pairwise(bounds), is_content.tolist(), strict=True) if kept])
    return out


def _cut(
    device: ArrayLauncher, text: Strings, words: Dictionary, hmm: bool
) -> Iterator[tuple[str, list[int], np.ndarray]]:
    """Yields of each row its characters, the positions where tokens begin and the last ends, and the tokens' kinds."""
    work = allocate_scratch(device, text)
    counts = np.empty(text.rows, np.int32)
    segment_rows.launch(device, text.rows, text, words, hmm, work, counts)
    for row, count in enumerate(counts.tolist()):
        at = int(text.offsets[row] - text.offsets[0]) + row
        line = work.chars[at : at + count].tobytes().decode("utf-32-le")
        begins = np.flatnonzero(work.cut[at : at + count])
        yield line, [*begins.tolist(), count], work.kind[at + begins]


@inlined
def decode_and_segment(text, row, at, words, hmm, work):
    """Decodes and segments one row in the scratch memory from `at` on; returns the number of characters."""
    first, last = np.int64(text.offsets[row]), np.int64(text.offsets[row + 1])
    end = at + (last - first) + 1
    chars = work.chars[at:end]
    count = decode(text.data, first, last, chars)
    segment(
        chars, count, words, hmm,
        work.route[at:end], work.reach[at:end], work.back[at:end], work.cut[at:end], work.kind[at:end],
    )  # fmt: skip
    return count


@kernel
def segment_rows(first, last, step, text, words, hmm, work, counts):
    """Segments rows; the result is in `work`. Writes each row's number of characters to `counts`, int32 (rows,)."""
    for row in range(first, last, step):
        at = scratch_start(text, row, row, step)  # each row in its own memory, where the result stays
        counts[row] = decode_and_segment(text, row, at, words, hmm, work)


@kernel
def measure_rows(first, last, step, text, words, classes, work, table, out):
    """Computes `MEASURES` of each row.

    Args:
        text, words, classes, work: see `measure` and `SegmentScratch`.
        table: int32, scratch, two entries for each one of `work`.
        out: float32 (rows, measures), output.
    """
    for row in range(first, last, step):
        at = scratch_start(text, row, first, step)
        count = decode_and_segment(text, row, at, words, True, work)
        chars = work.chars[at : at + count]
        measure_words(
            chars, count, classes,
            work.cut[at : at + count], work.kind[at : at + count], work.reach[at : at + count],
            table[2 * at : 2 * at + 2 * (count + 1)], out[row],
        )  # fmt: skip
        measure_characters(chars, count, classes, out[row])


@inlined
def measure_words(chars, count, classes, cut, kind, copies, table, out):
    """Computes the measures of words, out[0:5].

    Args:
        chars, count: code points of the row.
        classes: character classes.
        cut, kind: see `SegmentScratch`.
        copies: int32 (characters,), scratch: number of occurrences of the word that begins there, at its first one.
        table: int32, scratch, more than twice as long as the row: hash table of distinct words.
        out: float32 (measures,).
    """
    size = 1
    while 2 * size <= table.size:
        size *= 2
    for slot in range(size):
        table[slot] = EMPTY
    total, nouns, content, stops = 0, 0, 0, 0
    begin = 0
    while begin < count:
        end = begin + 1
        while end < count and cut[end] == 0:
            end += 1
        is_word = False
        hashed = np.uint64(0)
        for at in range(begin, end):
            is_word = is_word or classes[chars[at]] & ALPHANUMERIC != 0
            hashed = (hashed ^ np.uint64(chars[at])) * GOLDEN
        if is_word:
            total += 1
            nouns += kind[begin] & NOUN != 0
            content += kind[begin] & (NOUN | VERB | ADJECTIVE) != 0
            stops += kind[begin] & STOP_WORD != 0
            copies[begin] = 1
            slot = np.int64(hashed >> np.uint64(32)) & (size - 1)
            while table[slot] != EMPTY:
                if same_token(chars, cut, count, table[slot], begin, end):
                    copies[table[slot]] += 1
                    copies[begin] = 0
                    break
                slot = (slot + 1) & (size - 1)
            if table[slot] == EMPTY:
                table[slot] = begin
        else:
            copies[begin] = 0
        begin = end
    divisor = max(total, 1)
    once = 1 / divisor * math.log2(1 / divisor)  # of the words that occur once: most of them
    entropy = 0.0
    for at in range(count):
        if cut[at] and copies[at] > 0:
            share = copies[at] / total
            entropy -= once if copies[at] == 1 else share * math.log2(share)
    out[0] = total
    out[1] = nouns
    out[2] = content / divisor
    out[3] = stops / divisor
    out[4] = max(entropy, 0.0)


@inlined
def same_token(chars, cut, count, other, begin, end):
    """Whether the token that begins at `other` equals chars[begin:end]."""
    for offset in range(end - begin):
        if chars[other + offset] != chars[begin + offset]:
            return False
        if offset > 0 and cut[other + offset]:
            return False
    stop = other + end - begin
    return stop >= count or cut[stop] != 0


@inlined
def measure_characters(chars, count, classes, out):
    """Computes the measures of characters, out[5:11]."""
    letters, han, kana, latin, digits, solid = 0, 0, 0, 0, 0, 0
    for at in range(count):
        kind = classes[chars[at]]
        letters += kind & LETTER != 0
        han += kind & HAN != 0
        kana += kind & KANA != 0
        latin += kind & LATIN != 0
        digits += kind & DIGIT != 0
        solid += kind & SPACE == 0
    longest = 0
    for unit in range(1, MAX_UNIT_CHARACTERS + 1):
        run = 0
        for at in range(unit, count):
            run = run + 1 if chars[at] == chars[at - unit] else 0
            if run >= unit and run + unit > longest:
                longest = run + unit
    of_letters, of_solid = max(letters, 1), max(solid, 1)
    out[5] = han / of_letters
    out[6] = kana / of_letters
    out[7] = latin / of_letters
    out[8] = digits / of_solid
    out[9] = max(solid - letters - digits, 0) / of_solid
    out[10] = longest
