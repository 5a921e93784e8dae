"""Cleans captions: HTML, compatibility characters, emoji, surplus space, Traditional to Simplified Chinese."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from danqing.engine.core.strings import Strings
from danqing.kernels.portable import ArrayLauncher, inlined, kernel, resident, workspace
from danqing.kernels.text.captions import CHINESE, CONVERTED, DROP, FORM, HAN, JAPANESE, NARROW, SPACE
from danqing.kernels.text.markup import AMPERSAND, BLANK, LESS, remove_markup
from danqing.kernels.text.trie import ROOT_NODE, VALUE, child, longest_word
from danqing.kernels.text.utf8 import decode, decode_one, encode, encoded_size, scratch_start

FULL_WIDTH_OFFSET = 0xFEE0  # a full-width form minus its ASCII character
KEYCAP = 0x20E3
EMOJI_STYLE = 0xFE0F
MAX_WORD_GROWTH = 1.5
"""Maximum bytes of what a word of `Tables` becomes, per byte of the word. In OpenCC's dictionaries it is 4/3."""
MAX_GROWTH = 2
"""Maximum bytes of a cleaned row per byte of the row: the ideograph of a compatibility character has up to 4/3 of its
bytes, and can be converted."""


class Tables(NamedTuple):
    """What characters and words become, as arrays; `engine.stages.characters` makes them.

    Attributes:
        classes: uint16 (CODE_POINTS,), character classes.
        entries: int64, entries of a trie (`kernels.text.trie`), found from its `ROOT_NODE`. Its words are: characters
            of the class `FORM`; Traditional characters and phrases, which begin with characters of the class
            `CONVERTED`; `&` and the name of an entity; `<` and the name of an element.
        starts, targets: int32, the word of value v becomes targets[starts[v]:starts[v + 1]]; elements have no target.
        numbers: int32 (160,), the characters of the first numeric entities; -1 is none.
    """

    classes: np.ndarray
    entries: np.ndarray
    starts: np.ndarray
    targets: np.ndarray
    numbers: np.ndarray


class Cleaned(NamedTuple):
    """Cleaned rows on a device.

    Attributes:
        text: the rows, in Simplified characters.
        changed: bool (rows,), whether a row differs from the one as read.
        japanese: int32 (rows,), number of characters that only Japanese uses minus number of those that only Chinese
            uses, before the conversion to Simplified characters, which makes Chinese characters of Japanese ones
            (産 to 产).
    """

    text: Strings
    changed: Any
    japanese: Any


def normalize(device: ArrayLauncher, text: Strings, tables: Tables) -> Strings:
    """Removes markup and replaces compatibility characters by their ideographs.

    Args:
        device: holds the text.
        text: the rows.
        tables: in host memory.

    Returns:
        The rows, on the device; `text` itself if no row can change.
    """
    xp, text = device.xp, text.of_one_type()
    chars = workspace(device, "chars", text.size + text.rows, np.int32)
    counts, lengths = xp.empty(text.rows, np.int32), xp.empty(text.rows, np.int64)
    normalize_rows.launch(device, text.rows, text, resident(device, tables), chars, counts, lengths)
    if not bool((counts >= 0).any()):
        return text
    offsets, size = _offsets(device, lengths)
    out = xp.empty(size, np.uint8)
    write_rows.launch(device, text.rows, text, chars, counts, offsets, out)
    return Strings(offsets, out, size).of_one_type()


def clean(device: ArrayLauncher, text: Strings, tables: Tables) -> Cleaned:
    """Normalizes rows, removes emoji, special characters and surplus space, and makes them Simplified Chinese.

    Sequences of spaces become one space, none is left at the ends, and full-width letters and digits become narrow.

    Args:
        device: holds the text.
        text: the rows.
        tables: in host memory.
    """
    xp, text = device.xp, text.of_one_type()
    chars = workspace(device, "chars", text.size + text.rows, np.int32)
    data = workspace(device, "data", MAX_GROWTH * text.size, np.uint8)
    lengths, changed = xp.empty(text.rows, np.int64), xp.empty(text.rows, np.bool_)
    japanese = xp.empty(text.rows, np.int32)
    clean_rows.launch(device, text.rows, text, resident(device, tables), chars, data, lengths, changed, japanese)
    offsets, size = _offsets(device, lengths)
    out = xp.empty(size, np.uint8)
    gather_rows.launch(device, text.rows, data, text.offsets, offsets, out)
    return Cleaned(Strings(offsets, out, size).of_one_type(), changed, japanese)


def _offsets(device: ArrayLauncher, lengths: Any) -> tuple[Any, int]:
    """Returns the offsets of rows of these lengths, int64 on the device, and the sum of the lengths."""
    offsets = device.xp.zeros(len(lengths) + 1, np.int64)
    device.xp.cumsum(lengths, out=offsets[1:])
    return offsets, int(offsets[-1])


@kernel
def normalize_rows(first, last, step, text, tables, chars, counts, lengths):
    """Removes markup and replaces compatibility characters, of the rows that can have some.

    Args:
        text: `Strings`, with int64 offsets.
        tables: `Tables`.
        chars: int32, one entry per byte and one more per row, output: code points of the rows that can change.
        counts: int32 (rows,), output: number of the row's code points in `chars`, or -1 for a row that stays.
        lengths: int64 (rows,), output: bytes of each row.
    """
    for row in range(first, last, step):
        begin, stop = text.offsets[row], text.offsets[row + 1]
        counts[row], lengths[row] = -1, stop - begin
        marked, formed = changes(text.data, begin, stop, tables.classes)
        if marked or formed:
            at = begin - text.offsets[0] + row
            line = chars[at : at + stop - begin + 1]
            count = decode(text.data, begin, stop, line)
            if marked:
                count = remove_markup(line, count, tables)
            length = 0
            for place in range(count):
                line[place] = form_of(line[place], tables)
                length += encoded_size(line[place])
            counts[row], lengths[row] = count, length


@inlined
def changes(data, at, stop, classes):
    """Returns whether data[at:stop] can have markup, and whether it has compatibility characters."""
    marked, formed = False, False
    while at < stop:
        lead = data[at]
        if lead == 0xE2 or lead == 0xEF or lead == 0xF0:  # the first bytes of compatibility characters
            code, size = decode_one(data, at, stop)
            formed = formed or classes[code] & FORM != 0
            at += size
        else:
            marked = marked or lead in (AMPERSAND, LESS)
            at += 1
    return marked, formed


@inlined
def form_of(code, tables):
    """Returns the ideograph of a compatibility character; another character itself."""
    if tables.classes[code] & FORM == 0:
        return code
    return tables.targets[tables.starts[child(tables.entries, np.int64(ROOT_NODE), code) & VALUE]]


@kernel
def write_rows(first, last, step, text, chars, counts, offsets, out):
    """Writes row i, see `normalize_rows`, to out[offsets[i]:offsets[i + 1]]."""
    for row in range(first, last, step):
        begin, end = text.offsets[row], offsets[row]
        if counts[row] < 0:
            copy_bytes(text.data[begin:], out[end : offsets[row + 1]])
        else:
            at = begin - text.offsets[0] + row
            for place in range(at, at + counts[row]):
                end = encode(chars[place], out, end)


@kernel
def clean_rows(first, last, step, text, tables, chars, data, lengths, changed, japanese):
    """Cleans rows, see `clean`.

    Args:
        text: `Strings`, with int64 offsets.
        tables: `Tables`.
        chars: int32, scratch, one entry per byte and one more per row.
        data: uint8, output, `MAX_GROWTH` times as long as the text: each cleaned row is written at `MAX_GROWTH` times
            the position of the original.
        lengths: int64 (rows,), output: bytes of each cleaned row.
        changed, japanese: see `Cleaned`, output.
    """
    for row in range(first, last, step):
        begin, stop = text.offsets[row], text.offsets[row + 1]
        at = scratch_start(text, row, first, step)
        line = chars[at : at + stop - begin + 1]
        count = decode(text.data, begin, stop, line)
        if has_markup(line, count):
            count = remove_markup(line, count, tables)
        count, japanese[row] = clean_line(line, count, tables)
        start = MAX_GROWTH * (begin - text.offsets[0])
        length = simplify_line(line, count, tables, data, start) - start
        lengths[row] = length
        changed[row] = not are_equal(data[start : start + length], text.data[begin:stop])


@inlined
def are_equal(left, right):
    """Whether two rows of bytes are equal."""
    if left.size != right.size:
        return False
    differing = 0
    for place in range(left.size):
        differing |= left[place] ^ right[place]
    return differing == 0


@inlined
def copy_bytes(source, target):
    """Copies the first bytes of `source` to `target`, as many as it has."""
    for place in range(target.size):
        target[place] = source[place]


@inlined
def has_markup(chars, count):
    """Whether chars[:count] has an `&` or a `<`."""
    found = False
    for at in range(count):
        found |= (chars[at] == AMPERSAND) | (chars[at] == LESS)
    return found


@inlined
def clean_line(chars, count, tables):
    """Replaces compatibility and full-width characters, and removes others, in place.

    Returns:
        The number of characters left, and the number of those that only Japanese uses minus those that only Chinese
        uses.
    """
    classes = tables.classes
    end, japanese = 0, 0
    space = False
    for at in range(count):
        code = chars[at]
        kind = classes[code]
        if kind & FORM:
            code = form_of(code, tables)
            kind = classes[code]
        if kind & SPACE:
            space = True
            continue
        if kind & DROP or (at + 1 < count and is_followed_by_emoji_mark(chars, at) and kind & HAN == 0):
            continue
        if kind & NARROW:
            code -= FULL_WIDTH_OFFSET
        if space and end > 0:
            chars[end] = BLANK
            end += 1
        space = False
        chars[end] = code
        end += 1
        japanese += kind & JAPANESE != 0
        japanese -= kind & CHINESE != 0
    return end, japanese


@inlined
def is_followed_by_emoji_mark(chars, at):
    """Whether the next character makes this one an emoji: a keycap, or the emoji variation selector."""
    return chars[at + 1] == EMOJI_STYLE or chars[at + 1] == KEYCAP


@inlined
def simplify_line(chars, count, tables, out, end):
    """Writes chars[:count] in Simplified characters as UTF-8 to out[end:]; returns the position after them.

    At each position the longest phrase of OpenCC's dictionaries is replaced, else the character, as OpenCC does.
    """
    at = 0
    while at < count:
        code = chars[at]
        if tables.classes[code] & CONVERTED:
            value, stop = longest_word(chars, at, count, tables.entries)
            if value:
                for place in range(tables.starts[value], tables.starts[value + 1]):
                    end = encode(tables.targets[place], out, end)
                at = stop
                continue
        end = encode(code, out, end)
        at += 1
    return end


@kernel
def gather_rows(first, last, step, data, begins, offsets, out):
    """Copies row i, which `clean_rows` has written, to out[offsets[i]:offsets[i + 1]].

    Args:
        data: the output of `clean_rows`.
        begins: int64 (rows + 1,), offsets of the original rows.
        offsets: int64 (rows + 1,), offsets of the cleaned rows.
        out: uint8, output.
    """
    for row in range(first, last, step):
        copy_bytes(data[MAX_GROWTH * (begins[row] - begins[0]) :], out[offsets[row] : offsets[row + 1]])
