"""Weighs terms of word lists and patterns of advertisements (phone numbers, messenger accounts, links, prices)."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from danqing.engine.core.strings import Strings
from danqing.kernels.portable import ArrayLauncher, inlined, kernel, resident, workspace
from danqing.kernels.text.ascii import is_alphanumeric, is_digit, is_letter, lower
from danqing.kernels.text.trie import EMPTY, VALUE, Trie, build, child
from danqing.kernels.text.utf8 import decode, scratch_start

UNITS_PER_WEIGHT = 100
"""The value of a term in the trie is its weight times this, an integer."""
MAX_DISTINCT_TERMS = 64
"""Number of distinct terms of a row that are remembered. Beyond it, every occurrence of a term counts."""

SCHEME, WWW, MESSENGER, DOMAIN = 1, 2, 3, 4


@cache
def marks() -> Trie:
    """Returns the Latin words, in lower case, that mark links and accounts, with the kind of mark as value."""
    return build(
        dict.fromkeys(("http", "https"), SCHEME)
        | {"www": WWW}
        | dict.fromkeys(("vx", "wx", "qq", "weixin", "wechat"), MESSENGER)
        | dict.fromkeys(("com", "net", "org", "top", "xyz", "vip", "cc", "cn"), DOMAIN)
    )


class Patterns(NamedTuple):
    """Weight of each occurrence of a pattern."""

    phone: float = 0.0
    messenger: float = 0.0
    link: float = 0.0
    price: float = 0.0


def weigh(device: ArrayLauncher, text: Strings, terms: Trie, patterns: Patterns) -> Any:
    """Adds up the weights of the distinct terms and of all occurrences of patterns in each row.

    Args:
        device: holds the text.
        text: the rows.
        terms: term, in lower case → weight times `UNITS_PER_WEIGHT`.
        patterns: weights of patterns.

    Returns:
        float32 (rows,) on the device.
    """
    size = text.size + text.rows
    out = device.xp.empty(text.rows, np.float32)
    chars, found = workspace(device, "chars", size, np.int32), workspace(device, "found", size, np.int64)
    tables = resident(device, terms), resident(device, marks())
    weights = Patterns(*map(float, patterns))  # with integers, the kernel would be compiled again
    weigh_rows.launch(device, text.rows, text.of_one_type(), *tables, weights, chars, found, out)
    return out


@kernel
def weigh_rows(first, last, step, text, terms, marks, patterns, chars, found, out):
    """The kernel of `weigh`.

    Args:
        text, terms, patterns: see `weigh`.
        marks: see `marks`.
        chars, found: int32 and int64, scratch, one entry per byte and one more per row.
        out: float32 (rows,), output.
    """
    for row in range(first, last, step):
        begin, stop = np.int64(text.offsets[row]), np.int64(text.offsets[row + 1])
        at = scratch_start(text, row, first, step)
        line = chars[at : at + stop - begin + 1]
        count = decode(text.data, begin, stop, line)
        weight = sum_terms(line, count, terms, found[at : at + stop - begin + 1]) / UNITS_PER_WEIGHT
        out[row] = weight + sum_patterns(line, count, marks, patterns)


@inlined
def sum_terms(line, count, terms, found):
    """Returns the sum of the values of the distinct terms in line[:count]; `found` is scratch."""
    roots, entries = terms.roots, terms.entries
    total, known = 0, 0
    for start in range(count):
        if line[start] > 0xFFFF:
            continue
        node = roots[lower(line[start])]
        at = start + 1
        while node != EMPTY:
            if node & VALUE and is_whole(line, start, at, count):
                at_known = 0
                while at_known < known and found[at_known] != node:
                    at_known += 1
                if at_known == known:
                    total += node & VALUE
                    if known < min(MAX_DISTINCT_TERMS, count):
                        found[known] = node
                        known += 1
            if at == count:
                break
            node = child(entries, node, lower(line[at]))
            at += 1
    return total


@inlined
def is_whole(line, start, end, count):
    """Whether line[start:end] does not begin or end within a Latin word."""
    begins_inside = start > 0 and is_letter(line[start]) and is_letter(line[start - 1])
    return not begins_inside and not (end < count and is_letter(line[end - 1]) and is_letter(line[end]))


@inlined
def sum_patterns(line, count, marks, patterns):
    """Returns the sum of the weights of all patterns in line[:count]; none begins directly after a letter or digit."""
    total = 0.0
    at = 0
    while at < count:
        code = line[at]
        if is_digit(code):
            end = number_end(line, at, count)
            total += patterns.phone * is_phone(line, at, end)
            total += patterns.price * is_price(line, at, end, count)
            at = end
        elif is_alphanumeric(code):
            end = at
            while end < count and (is_alphanumeric(line[end]) or line[end] == 45):
                end += 1
            mark = find_mark(line, at, end, marks)
            total += patterns.link * is_link(line, at, end, count, mark, marks)
            if mark == MESSENGER:
                total += patterns.messenger * has_account(line, end, count)
            at = end
        else:
            weixin = code == 0x5FAE or code == 0x8587  # 微信, and 薇信, which avoids filters
            if weixin and at + 1 < count and line[at + 1] == 0x4FE1:
                total += patterns.messenger * has_account(line, at + 2, count)
            at += 1
    return total


@inlined
def number_end(line, start, count):
    """Returns the end of a sequence of digits with single hyphens, points and spaces between them."""
    end = start
    while end < count:
        if not is_digit(line[end]):
            between = line[end] == 45 or line[end] == 46 or line[end] == 32
            if not between or end + 1 >= count or not is_digit(line[end + 1]):
                break
        end += 1
    return end


@inlined
def is_phone(line, start, end):
    """Whether line[start:end] is a Chinese mobile number (1 3…9, eleven digits), a 400 or 800 number (ten digits), or a
    number with an area code (0 …, with a hyphen)."""
    digits, hyphens, points = 0, 0, 0
    head = 0
    for at in range(start, end):
        if is_digit(line[at]):
            digits += 1
            if digits <= 3:
                head = 10 * head + line[at] - 48
        hyphens += line[at] == 45
        points += line[at] == 46
    if points:
        return False
    mobile = digits == 11 and 130 <= head <= 199
    service = digits == 10 and (head == 400 or head == 800)
    landline = (10 <= digits <= 12 and hyphens == 1 and head < 100 and line[start + 3] == 45) or (
        11 <= digits <= 12 and hyphens == 1 and line[start] == 48 and line[start + 4] == 45
    )
    return mobile or service or landline


@inlined
def is_price(line, start, end, count):
    """Whether the number line[start:end] has a currency before or after it: ￥ ¥ $, 元, 块钱."""
    before = line[start - 1] if start > 0 else 0
    after = line[end] if end < count else 0
    second = line[end + 1] if end + 1 < count else 0
    return (
        before == 0xFFE5 or before == 0xA5 or before == 36 or (after == 0x5757 and second == 0x94B1)
        or (after == 0x5143 and not (second == 0x4EE3 or second == 0x65E6 or second == 0x5BB5))  # 元代, 元旦, 元宵
    )  # fmt: skip


@inlined
def is_link(line, start, end, count, mark, marks):
    """Whether line[start:end] begins a link: http://…, www.…, or a name, a dot and a top-level domain.

    Of an address with several of these, only the first is a link.
    """
    before = line[start - 1] if start > 0 else 0
    if mark == SCHEME:
        return end + 2 < count and line[end] == 58 and line[end + 1] == 47 and line[end + 2] == 47
    if end >= count or line[end] != 46 or before == 46 or before == 47:
        return False
    if mark == WWW:
        return True
    stop = end + 1
    while stop < count and is_alphanumeric(line[stop]):
        stop += 1
    return find_mark(line, end + 1, stop, marks) == DOMAIN


@inlined
def find_mark(line, start, end, marks):
    """Returns the value of the mark line[start:end], in any case; 0 if it is none."""
    if start >= end:
        return 0
    node = marks.roots[lower(line[start])]
    at = start + 1
    while at < end and node != EMPTY:
        node = child(marks.entries, node, lower(line[at]))
        at += 1
    return 0 if node == EMPTY else node & VALUE


@inlined
def has_account(line, start, count):
    """Whether an account name follows within four characters: at least five letters and digits, one digit at least."""
    at = start
    while at < count and at < start + 4 and not is_alphanumeric(line[at]):
        at += 1
    length, digits = 0, 0
    while at < count and (is_alphanumeric(line[at]) or line[at] == 95 or line[at] == 45):
        digits += is_digit(line[at])
        length += 1
        at += 1
    return length >= 5 and digits > 0
