"""Measures captions on their UTF-8 bytes (words, characters, information) and cleans them."""

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
from danqing.kernels.text.utf8 import decode, decode_one, encode

# Character classes: bits of a table of all code points (`engine.stages.dictionary.character_classes`).
LETTER, ALPHANUMERIC, HAN, KANA, HANGUL, LATIN, DIGIT, SPACE = (1 << bit for bit in range(8))
DROP, NARROW, JAPANESE = 1 << 8, 1 << 9, 1 << 10
CODE_POINTS = 0x110000

FULL_WIDTH_OFFSET = 0xFEE0  # a full-width form minus its ASCII character
KEYCAP = 0x20E3
EMOJI_STYLE = 0xFE0F
MAX_UNIT_CHARACTERS = 4  # of a unit whose repetition is measured


MEASURES = (
    "words", "nouns", "content_word_share", "stop_word_share", "text_entropy",
    "han_share", "kana_share", "hangul_share", "latin_share", "digit_share", "symbol_share", "longest_repetition",
    "japanese_share",
)  # fmt: skip
"""Columns of the result of `measure`; shares are in 0 … 1.

`words`: number of tokens with a letter, a digit or a Han character. Among the words: `nouns` (number),
`content_word_share` (nouns, verbs and adjectives), `stop_word_share`, `text_entropy` (-sum p log2 p over the distinct
words, in bits). Among the letters: `han_share`, `kana_share`, `hangul_share`, `latin_share`, and `japanese_share`
(Han characters that only Japanese uses). Among the characters other than spaces: `digit_share`, `symbol_share` (neither
letter nor digit). `longest_repetition`: number of characters of the longest part that repeats a unit of one to four
characters.
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
    measure_rows.launch(device, text.rows, text, *tables, allocate_scratch(device, text), table, out)
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
def decode_and_segment(text, row, words, hmm, work):
    """Decodes and segments one row; returns the start of its scratch memory and its number of characters."""
    first, last = np.int64(text.offsets[row]), np.int64(text.offsets[row + 1])
    at = first - np.int64(text.offsets[0]) + row
    end = at + (last - first) + 1
    chars = work.chars[at:end]
    count = decode(text.data, first, last, chars)
    segment(
        chars, count, words, hmm,
        work.route[at:end], work.reach[at:end], work.back[at:end], work.cut[at:end], work.kind[at:end],
    )  # fmt: skip
    return at, count


@kernel
def segment_rows(first, last, step, text, words, hmm, work, counts):
    """Segments rows; the result is in `work`. Writes each row's number of characters to `counts`, int32 (rows,)."""
    for row in range(first, last, step):
        _, counts[row] = decode_and_segment(text, row, words, hmm, work)


@kernel
def measure_rows(first, last, step, text, words, classes, work, table, out):
    """Computes `MEASURES` of each row.

    Args:
        text, words, classes, work: see `measure` and `SegmentScratch`.
        table: int32, scratch, two entries for each one of `work`.
        out: float32 (rows, measures), output.
    """
    for row in range(first, last, step):
        at, count = decode_and_segment(text, row, words, True, work)
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
    entropy = 0.0
    for at in range(count):
        if cut[at] and copies[at] > 0:
            share = copies[at] / total
            entropy -= share * math.log2(share)
    divisor = max(total, 1)
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
    """Computes the measures of characters, out[5:13]."""
    letters, han, kana, hangul, latin, japanese, digits, solid = 0, 0, 0, 0, 0, 0, 0, 0
    for at in range(count):
        kind = classes[chars[at]]
        letters += kind & LETTER != 0
        han += kind & HAN != 0
        kana += kind & KANA != 0
        hangul += kind & HANGUL != 0
        latin += kind & LATIN != 0
        japanese += kind & JAPANESE != 0
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
    out[7] = hangul / of_letters
    out[8] = latin / of_letters
    out[9] = digits / of_solid
    out[10] = max(solid - letters - digits, 0) / of_solid
    out[11] = longest
    out[12] = japanese / of_letters


@inlined
def has_form(lead):
    """Whether characters that begin with this UTF-8 byte can have another form: the blocks U+2E80, U+F900, U+2F800."""
    return lead == 0xE2 or lead == 0xEF or lead == 0xF0


@kernel
def measure_forms(first, last, step, text, forms, lengths, changed):
    """Computes each row's length after `write_forms`, and whether it changes.

    Args:
        text: `Strings`.
        forms: int32 (CODE_POINTS,), the code point that replaces each one.
        lengths: int32 (rows,), output: bytes.
        changed: int32 (rows,), output: number of characters that change.
    """
    for row in range(first, last, step):
        at, stop = np.int64(text.offsets[row]), np.int64(text.offsets[row + 1])
        length, count = stop - at, 0
        while at < stop:
            if not has_form(text.data[at]):
                at += 1
                continue
            code, size = decode_one(text.data, at, stop)
            form = forms[code]
            if form != code:
                length += 1 + (form >= 0x80) + (form >= 0x800) + (form >= 0x10000) - size
                count += 1
            at += size
        lengths[row], changed[row] = length, count


@kernel
def write_forms(first, last, step, text, forms, offsets, out):
    """Writes row i with its characters replaced to out[offsets[i]:offsets[i + 1]]; for `forms` see `measure_forms`."""
    for row in range(first, last, step):
        at, stop = np.int64(text.offsets[row]), np.int64(text.offsets[row + 1])
        end = np.int64(offsets[row])
        while at < stop:
            size = 1
            if has_form(text.data[at]):
                code, size = decode_one(text.data, at, stop)
                form = forms[code]
                if form != code:
                    end = encode(form, out, end)
                    at += size
                    continue
            for follower in range(size):
                out[end + follower] = text.data[at + follower]
            end += size
            at += size


def unify(device: ArrayLauncher, text: Strings, forms: np.ndarray) -> Strings:
    """Replaces each character by its form.

    Args:
        device: holds the text.
        text: the rows.
        forms: int32 (CODE_POINTS,), in host memory. Only characters of UTF-8 lead bytes E2, EF and F0 may change.

    Returns:
        The rows, on the device; `text` itself if nothing changes.
    """
    xp = device.xp
    lengths, changed = xp.empty(text.rows, np.int32), xp.empty(text.rows, np.int32)
    table = resident(device, forms)
    measure_forms.launch(device, text.rows, text, table, lengths, changed)
    if not int(changed.sum()):
        return text
    offsets = xp.zeros(text.rows + 1, np.int64)
    xp.cumsum(lengths, out=offsets[1:])
    size = int(offsets[-1])
    out = xp.empty(size, np.uint8)
    write_forms.launch(device, text.rows, text, table, offsets, out)
    return Strings(offsets, out, size)


@kernel
def clean_rows(first, last, step, text, classes, chars, data, lengths):
    """Removes emoji, control and special characters, and makes full-width letters and digits narrow.

    Sequences of spaces become one space; none is left at the ends.

    Args:
        text: `Strings`.
        classes: character classes.
        chars: int32, scratch, one entry per byte and one more per row.
        data: uint8, output, as long as the text: each cleaned row is written at the position of the original.
        lengths: int32 (rows,), output: bytes of each cleaned row.
    """
    for row in range(first, last, step):
        origin = np.int64(text.offsets[0])
        begin, stop = np.int64(text.offsets[row]), np.int64(text.offsets[row + 1])
        line = chars[begin - origin + row : stop - origin + row + 1]
        count = decode(text.data, begin, stop, line)
        start = begin - origin
        end = start
        space = False
        for at in range(count):
            code = line[at]
            kind = classes[code]
            if kind & SPACE:
                space = True
                continue
            if kind & DROP or (at + 1 < count and is_followed_by_emoji_mark(line, at) and kind & HAN == 0):
                continue
            if kind & NARROW:
                code -= FULL_WIDTH_OFFSET
            if space and end > start:
                data[end] = 32
                end += 1
            space = False
            end = encode(code, data, end)
        lengths[row] = end - start


@inlined
def is_followed_by_emoji_mark(line, at):
    """Whether the next character makes this one an emoji: a keycap, or the emoji variation selector."""
    return line[at + 1] == EMOJI_STYLE or line[at + 1] == KEYCAP


@kernel
def gather_rows(first, last, step, data, begins, offsets, out):
    """Copies row i from data[begins[i]:] to out[offsets[i]:offsets[i + 1]]."""
    for row in range(first, last, step):
        begin = np.int64(begins[row]) - np.int64(begins[0])
        for at in range(offsets[row], offsets[row + 1]):
            out[at] = data[begin + at - offsets[row]]


def clean(device: ArrayLauncher, text: Strings, classes: np.ndarray) -> Strings:
    """Cleans each row, see `clean_rows`.

    Args:
        device: holds the text.
        text: the rows.
        classes: uint16 (CODE_POINTS,), character classes, in host memory.

    Returns:
        The cleaned rows, on the device.
    """
    xp = device.xp
    data, lengths = workspace(device, "data", text.size, np.uint8), xp.empty(text.rows, np.int32)
    chars = workspace(device, "chars", text.size + text.rows, np.int32)
    clean_rows.launch(device, text.rows, text, resident(device, classes), chars, data, lengths)
    offsets = xp.zeros(text.rows + 1, np.int64)
    xp.cumsum(lengths, out=offsets[1:])
    size = int(offsets[-1])
    out = xp.empty(size, np.uint8)
    gather_rows.launch(device, text.rows, data, text.offsets, offsets, out)
    return Strings(offsets, out, size)
