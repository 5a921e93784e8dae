"""What a caption says of itself, measured on its UTF-8 bytes in one pass: words, characters, information."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from danqing.kernels.portable import ArrayLauncher, inlined, kernel, resident, workspace
from danqing.kernels.text.segment import ADJECTIVE, NOUN, STOP_WORD, VERB, Dictionary, Scratch, segment
from danqing.kernels.text.strings import Strings, decode, encode
from danqing.kernels.text.trie import EMPTY, GOLDEN

# Character classes: bits of a table over all code points (`engine.stages.dictionary.character_classes`).
LETTER, ALPHANUMERIC, HAN, KANA, HANGUL, LATIN, DIGIT, SPACE = (1 << bit for bit in range(8))
DROP, NARROW = 1 << 8, 1 << 9
CODES = 0x110000

FULL_WIDTH = 0xFEE0  # from a full-width form to its ASCII twin
KEYCAP, EMOJI_STYLE = 0x20E3, 0xFE0F
LONGEST_UNIT = 4  # characters of a unit whose repetition is looked for


MEASURES = (
    "words", "nouns", "content_word_share", "stop_word_share", "text_entropy",
    "han_share", "kana_share", "hangul_share", "latin_share", "digit_share", "symbol_share", "longest_repetition",
)  # fmt: skip
"""What `measure` gives, in this order; shares lie in 0 … 1.

`words`: tokens with a letter, a digit or a Han character. Of the words: `nouns` (count), `content_word_share` (nouns,
verbs, adjectives), `stop_word_share`, `text_entropy` (bits: -sum p log2 p over equal words). Of the letters:
`han_share`, `kana_share`, `hangul_share`, `latin_share`. Of the characters that are not space: `digit_share`,
`symbol_share` (neither letter nor digit). `longest_repetition`: characters of the longest stretch that repeats a unit
of one to four characters.
"""


def scratch(device: ArrayLauncher, text: Strings) -> Scratch:
    """Working memory for `segment` over these rows."""
    size = text.size + text.rows
    kinds = (np.int32, np.float64, np.int32, np.uint8, np.uint8, np.uint8)
    return Scratch(*(workspace(device, name, size, kind) for name, kind in zip(Scratch._fields, kinds, strict=True)))


def measure(device: ArrayLauncher, text: Strings, words: Dictionary, classes: np.ndarray) -> Any:
    """All measures of all rows: float32 (rows, measures), of the device, as the text is."""
    out = device.xp.empty((text.rows, len(MEASURES)), np.float32)
    table = workspace(device, "table", 2 * (text.size + text.rows), np.int32)
    tables = resident(device, words), resident(device, classes)
    measure_rows.launch(device, text.rows, text, *tables, scratch(device, text), table, out)
    return out


def tokens(device: ArrayLauncher, text: Strings, words: Dictionary, hmm: bool = True) -> list[list[str]]:
    """Each row's tokens, as `jieba.lcut` gives them (on the host)."""
    return [[line[a:b] for a, b in pairwise(bounds)] for line, bounds, _ in _cut(device, text, words, hmm)]


def content_words(device: ArrayLauncher, text: Strings, words: Dictionary) -> list[list[str]]:
    """Each row's nouns, verbs and adjectives that are no stop words, in order (on the host)."""
    out = []
    for line, bounds, kinds in _cut(device, text, words, True):
        telling = (kinds & (NOUN | VERB | ADJECTIVE) != 0) & (kinds & STOP_WORD == 0)
        out.append([line[a:b] for (a, b), tells in zip(pairwise(bounds), telling.tolist(), strict=True) if tells])
    return out


def _cut(
    device: ArrayLauncher, text: Strings, words: Dictionary, hmm: bool
) -> Iterator[tuple[str, list[int], np.ndarray]]:
    """Of each row: its characters, where its tokens begin and the last ends, and what the dictionary knows of each."""
    work = scratch(device, text)
    counts = np.empty(text.rows, np.int32)
    segment_rows.launch(device, text.rows, text, words, hmm, work, counts)
    for row, count in enumerate(counts.tolist()):
        at = int(text.offsets[row] - text.offsets[0]) + row
        line = work.chars[at : at + count].tobytes().decode("utf-32-le")
        begins = np.flatnonzero(work.cut[at : at + count])
        yield line, [*begins.tolist(), count], work.kind[at + begins]


@inlined
def decode_and_segment(text, row, words, hmm, work):
    """Decodes and cuts one row; returns where its scratch begins and how many characters it has."""
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
    """Leaves the cuts in the scratch memory, and each row's number of characters in `counts`."""
    for row in range(first, last, step):
        _, counts[row] = decode_and_segment(text, row, words, hmm, work)


@kernel
def measure_rows(first, last, step, text, words, classes, work, table, out):
    """See `MEASURES`. `table`: int32 scratch, two entries for every one of `work`."""
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
    """`copies`: int32, one a character; `table`: int32, more than twice the characters."""
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
    """Whether the token at `other` equals chars[begin:end]."""
    for offset in range(end - begin):
        if chars[other + offset] != chars[begin + offset]:
            return False
        if offset > 0 and cut[other + offset]:
            return False
    behind = other + end - begin
    return behind >= count or cut[behind] != 0


@inlined
def measure_characters(chars, count, classes, out):
    letters, han, kana, hangul, latin, digits, solid = 0, 0, 0, 0, 0, 0, 0
    for at in range(count):
        kind = classes[chars[at]]
        letters += kind & LETTER != 0
        han += kind & HAN != 0
        kana += kind & KANA != 0
        hangul += kind & HANGUL != 0
        latin += kind & LATIN != 0
        digits += kind & DIGIT != 0
        solid += kind & SPACE == 0
    longest = 0
    for unit in range(1, LONGEST_UNIT + 1):
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


@kernel
def clean_rows(first, last, step, text, classes, chars, data, lengths):
    """Emoji, controls and special characters out, full-width letters and digits narrow, spaces single and inside.

    Args:
        chars: int32 scratch, an entry for every byte and one more a row.
        data: uint8, as long as the text's bytes; row i is written from the position on where it began.
        lengths: int32 (rows,), bytes written.
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
            if kind & DROP or (at + 1 < count and dresses_as_emoji(line, at) and kind & HAN == 0):
                continue
            if kind & NARROW:
                code -= FULL_WIDTH
            if space and end > start:
                data[end] = 32
                end += 1
            space = False
            end = encode(code, data, end)
        lengths[row] = end - start


@inlined
def dresses_as_emoji(line, at):
    """Whether what follows turns this character into an emoji: a keycap, or the emoji variation selector."""
    return line[at + 1] == EMOJI_STYLE or line[at + 1] == KEYCAP


@kernel
def gather_rows(first, last, step, data, begins, offsets, out):
    """Copies row i from data[begins[i]:] to out[offsets[i]:offsets[i + 1]]."""
    for row in range(first, last, step):
        begin = np.int64(begins[row]) - np.int64(begins[0])
        for at in range(offsets[row], offsets[row + 1]):
            out[at] = data[begin + at - offsets[row]]


def clean(device: ArrayLauncher, text: Strings, classes: np.ndarray) -> Strings:
    """The cleaned rows, on the device, as the text is."""
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
