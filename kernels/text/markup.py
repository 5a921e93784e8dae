"""Removes HTML from code points: entities become characters, tags become a space or nothing.

Entities are those of Python's `html.unescape`. A tag has the name of an element of HTML and attributes with values:
`a < b`, `3<5`, `<公园>` and `<Windows>` stay. Each function changes its row in place: no replacement is longer than
what it replaces. None looks beyond the next `<` but one, so the time is linear in the length.
"""

from __future__ import annotations

import numpy as np

from danqing.kernels.portable import inlined
from danqing.kernels.text.ascii import hex_digit, is_digit, is_letter, lower
from danqing.kernels.text.captions import ALPHANUMERIC, SPACE
from danqing.kernels.text.trie import EMPTY, ROOT_NODE, VALUE, child, longest_word

# Values of the words `<` + name of an element, in `Tables.entries`.
SCRIPT, STYLE, BLOCK, INLINE = 1, 2, 3, 4
COMMENT = 5  # what `hidden_end` calls `<!--`
FIRST_TARGET = 5
"""Smallest value of a word that has a target in `Tables.targets`."""

AMPERSAND, LESS, GREATER, SLASH, EQUALS, NUMBER_SIGN, SEMICOLON = (ord(c) for c in "&<>/=#;")
QUOTE, APOSTROPHE, BLANK = ord('"'), ord("'"), ord(" ")
LARGEST = 0x10FFFF
REPLACEMENT = 0xFFFD


@inlined
def remove_markup(chars, count, tables):
    """Decodes entities, twice, since some pages escape what is escaped already, and removes tags.

    Comments, scripts and style sheets are removed with their content. They and tags of blocks become a space, tags
    within a line nothing.

    Args:
        chars: int32, code points of a row.
        count: their number.
        tables: `cleaning.Tables`.

    Returns:
        The number of code points left.
    """
    for _ in range(2):
        count = decode_entities(chars, count, tables)
    for kind in range(3):
        count = remove_tags(chars, count, kind, tables)
    return count


@inlined
def decode_entities(chars, count, tables):
    """Replaces each entity by its characters; returns the number of code points left."""
    at, end = 0, 0
    while at < count:
        code = chars[at]
        if code != AMPERSAND:
            chars[end] = code
            end += 1
            at += 1
        elif at + 1 < count and chars[at + 1] == NUMBER_SIGN:
            code, at = numeric_entity(chars, at, count, tables.numbers)
            if code >= 0:
                chars[end] = code
                end += 1
        else:
            value, at = longest_word(chars, at, count, tables.entries)
            if value == 0:
                chars[end] = AMPERSAND
                end += 1
            else:
                for place in range(tables.starts[value], tables.starts[value + 1]):
                    chars[end] = tables.targets[place]
                    end += 1
    return end


@inlined
def numeric_entity(chars, at, count, numbers):
    """Reads `&#…;` at chars[at].

    Returns:
        The code point, or -1 for none, and the position after the entity. `&` and the position after it if there are no
        digits.
    """
    start = at + 2
    base = 10
    if start < count and chars[start] | 0x20 == 120:  # x, X
        base = 16
        start += 1
    number = np.int64(0)
    place = start
    while place < count:
        digit = hex_digit(chars[place])
        if digit < 0 or digit >= base:
            break
        number = min(number * base + digit, np.int64(LARGEST + 1))
        place += 1
    if place == start:
        return np.int64(AMPERSAND), at + 1
    if place < count and chars[place] == SEMICOLON:
        place += 1
    if number < numbers.size:
        return np.int64(numbers[number]), place
    if number > LARGEST or 0xD800 <= number <= 0xDFFF:
        return np.int64(REPLACEMENT), place
    if 0xFDD0 <= number <= 0xFDEF or number & 0xFFFE == 0xFFFE:
        return np.int64(-1), place
    return number, place


@inlined
def remove_tags(chars, count, kind, tables):
    """Removes comments, scripts and style sheets (`kind` 0), tags of blocks (1) or tags within a line (2).

    Returns:
        The number of code points left.
    """
    at, end = 0, 0
    while at < count:
        if chars[at] == LESS:
            if kind == 0:
                stop = hidden_end(chars, at, count, tables)
            else:
                stop = tag_end(chars, at, count, kind == 1, tables)
            if stop > 0:
                if kind < 2:
                    chars[end] = BLANK
                    end += 1
                at = stop
                continue
        chars[end] = chars[at]
        end += 1
        at += 1
    return end


@inlined
def hidden_end(chars, at, count, tables):
    """Returns the end of the comment, or the script or style sheet, that begins at the `<` chars[at], or 0."""
    if at + 3 < count and chars[at + 1] == 33 and chars[at + 2] == 45 and chars[at + 3] == 45:  # <!--
        element, place = np.int64(COMMENT), at + 4
    else:
        element, place = element_at(chars, at + 1, count, tables.entries)
        if element != SCRIPT and element != STYLE:
            return 0
        if place >= count or (chars[place] != GREATER and tables.classes[chars[place]] & SPACE == 0):
            return 0
    while place < count and chars[place] != GREATER and chars[place] != LESS:
        place += 1
    if place >= count or chars[place] == LESS:
        return 0
    place += 1
    if element == COMMENT:
        return place
    while place < count and chars[place] != LESS:
        place += 1
    if place + 1 >= count or chars[place + 1] != SLASH:
        return 0
    closed, place = element_at(chars, place + 2, count, tables.entries)
    place = after_spaces(chars, place, count, tables.classes)
    return place + 1 if closed == element and place < count and chars[place] == GREATER else 0


@inlined
def tag_end(chars, at, count, of_block, tables):
    """Returns the end of the tag at the `<` chars[at], or 0: a tag of a block, or else one within a line."""
    place = at + 1
    if place < count and chars[place] == SLASH:
        place += 1
    element, place = element_at(chars, place, count, tables.entries)
    if element == 0 or (element != INLINE) != of_block:
        return 0
    classes = tables.classes
    while True:
        name = after_spaces(chars, place, count, classes)
        stop = name
        while stop < count and is_in_attribute_name(chars[stop], classes):
            stop += 1
        if name == place or stop == name:
            place = name
            break
        stop = after_spaces(chars, stop, count, classes)
        if stop >= count or chars[stop] != EQUALS:
            return 0
        place = value_end(chars, after_spaces(chars, stop + 1, count, classes), count, classes)
        if place == 0:
            return 0
    if place < count and chars[place] == SLASH:
        place += 1
    return place + 1 if place < count and chars[place] == GREATER else 0


@inlined
def element_at(chars, at, count, entries):
    """Returns the value of the element whose name is at chars[at], or 0, and the position after the name.

    The case of ASCII letters does not matter.
    """
    node = child(entries, np.int64(ROOT_NODE), LESS)
    while at < count:
        code = chars[at]
        if not (is_letter(code) or is_digit(code)):
            break
        node = child(entries, node, lower(code))
        if node == EMPTY:
            return np.int64(0), at
        at += 1
    return np.int64(node & VALUE), at


@inlined
def after_spaces(chars, at, count, classes):
    """Returns the position of the first character from chars[at] on that is no space."""
    while at < count and classes[chars[at]] & SPACE:
        at += 1
    return at


@inlined
def is_in_attribute_name(code, classes):
    """Whether the name of an attribute can have a character: a letter, a digit, `_`, `:` or `-`."""
    return classes[code] & ALPHANUMERIC != 0 or code == 95 or code == 58 or code == 45


@inlined
def value_end(chars, at, count, classes):
    """Returns the end of the attribute's value at chars[at], or 0."""
    if at >= count:
        return 0
    quote = chars[at]
    place = at
    if quote in (QUOTE, APOSTROPHE):
        place += 1
        while place < count and chars[place] != quote and chars[place] != LESS:
            place += 1
        return place + 1 if place < count and chars[place] == quote else 0
    while place < count and is_in_plain_value(chars[place], classes):
        place += 1
    return place if place > at else 0


@inlined
def is_in_plain_value(code, classes):
    """Whether a value without quotes can have a character."""
    return code != QUOTE and code != APOSTROPHE and code != LESS and code != GREATER and classes[code] & SPACE == 0
