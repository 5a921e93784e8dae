"""Regular expressions in RE2's syntax, written so that libcudf gives them RE2's meaning.

Both search by a Thompson automaton with the priorities of Perl, so concatenation, alternatives, groups and repetitions
mean the same. They differ in what single characters and classes match: `\\d`, `\\w` and `\\s` are Unicode's in libcudf
and ASCII in RE2, libcudf has no `\\p{Han}` and no flags within a pattern, and `^`, `$` and `\\b` depend on flags and
versions. So every class is replaced by the code points that RE2 says it matches, and what is left over is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAX_STATES = 500
"""Maximum number of characters and classes, repetitions multiplied. libcudf needs memory for each of them and row."""
MAX_DEPTH = 20
"""Maximum depth of nested groups."""

_FLAGS = re.compile(r"\(\?[is]+\)")
_GROUP = re.compile(r"\((?:\?(?::|P?<\w+>))?(?!\?)")
_REPEATED = re.compile(r"(?:[*+?]|\{(\d+)(,?)(\d*)\})(\??)")
_ESCAPE = re.compile(r"\\(?:[dDsSwWtnrfva]|[pP](?:\{\^?\w+\}|[A-Z])|x[0-9A-Fa-f]{2}|x\{[0-9A-Fa-f]+\}|[^\w\s])")
_CLASS = re.compile(r"\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]", re.DOTALL)
_SURROGATES = range(0xD800, 0xE000)


class DiffersError(ValueError):
    """A part of a pattern that libcudf does not have, or gives another meaning."""


class _Part(NamedTuple):
    """A rewritten part of a pattern.

    Attributes:
        text: the part.
        can_be_empty: whether it matches the empty text.
        states: number of characters and classes, repetitions multiplied.
    """

    text: str
    can_be_empty: bool
    states: int


def for_libcudf(pattern: str) -> str:
    """Rewrites a pattern that RE2 accepts.

    Raises:
        DiffersError: libcudf has no equal; names the part.

    >>> for_libcudf(r"qq\\w?\\d{5,}|(?:微信|v信)号?")
    'qq[0-9A-Z_a-z]?[0-9]{5,}|(?:微信|v信)号?'
    """
    flags = _FLAGS.match(pattern)
    reader = _Reader(pattern, flags[0] if flags else "")
    return reader.alternatives().text


class _Reader:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str, flags: str) -> None:
        self.pattern, self.flags, self.at, self.depth = pattern, flags, len(flags), 0

    def alternatives(self) -> _Part:
        parts = [self.sequence()]
        while self.pattern.startswith("|", self.at):
            self.at += 1
            parts.append(self.sequence())
        return _joined("|", parts, any(part.can_be_empty for part in parts))

    def sequence(self) -> _Part:
        parts: list[_Part] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            parts.append(self.repeated(self.single()))
        if not parts:
            raise DiffersError("an empty alternative")
        return _joined("", parts, all(part.can_be_empty for part in parts))

    def repeated(self, part: _Part) -> _Part:
        found = _REPEATED.match(self.pattern, self.at)
        if not found:
            return part
        self.at = found.end()
        if part.can_be_empty:
            raise DiffersError(f"{found[0]} after a group that matches the empty text")
        least, most = (int(number or 0) for number in (found[1], found[3]))
        optional = found[0][0] in "*?" or (found[1] is not None and least == 0)
        return _sized(_Part(part.text + found[0], optional, part.states * max(least + 1, most)))

    def single(self) -> _Part:
        """Reads a character, a class or a group."""
        pattern, at = self.pattern, self.at
        char = pattern[at]
        if char == "(":
            return self.group()
        if char in "^$\0" or _REPEATED.match(pattern, at):
            raise DiffersError(repr(char))
        known = {"\\": _ESCAPE, "[": _CLASS}.get(char)
        found = known.match(pattern, at) if known else None
        if known and not found:
            raise DiffersError(pattern[at : at + 2])
        text = found[0] if found else char
        self.at += len(text)
        cased = "i" in self.flags and char.lower() != char.upper()
        if found or char == "." or cased:
            return _Part(_class(self.flags + text), False, 1)
        return _Part(f"\\{char}" if char in r".^$*+?{}[]\|()" else char, False, 1)

    def group(self) -> _Part:
        found = _GROUP.match(self.pattern, self.at)
        self.depth += 1
        if not found:
            raise DiffersError(self.pattern[self.at : self.at + 4])
        if self.depth > MAX_DEPTH:
            raise DiffersError(f"more than {MAX_DEPTH} groups in each other")
        self.at = found.end()
        part = self.alternatives()
        self.at += 1  # the closing parenthesis, since RE2 has accepted the pattern
        self.depth -= 1
        return part._replace(text=f"(?:{part.text})")


def _joined(separator: str, parts: Sequence[_Part], can_be_empty: bool) -> _Part:
    return _sized(_Part(separator.join(part.text for part in parts), can_be_empty, sum(part.states for part in parts)))


def _sized(part: _Part) -> _Part:
    if part.states > MAX_STATES:
        raise DiffersError(f"more than {MAX_STATES} characters and classes")
    return part


@cache
def _all_code_points() -> tuple[np.ndarray, pa.Array]:
    codes = np.array([code for code in range(0x110000) if code not in _SURROGATES], np.int32)
    return codes, pa.array(list(map(chr, codes.tolist())), pa.large_string())


@cache
def _class(single: str) -> str:
    """Asks RE2 which code points a class or an escape matches, and writes them as ranges.

    A class with U+0000, which ends a pattern of libcudf, is written by what it does not have.
    """
    codes, texts = _all_code_points()
    flags = _FLAGS.match(single)
    start = flags.end() if flags else 0
    found = pc.match_substring_regex(texts, pattern=rf"{single[:start]}\A(?:{single[start:]})\z")
    inside = found.to_numpy(zero_copy_only=False)
    negated = bool(inside[0])
    places = np.flatnonzero(inside != negated)
    if not len(places):
        raise DiffersError(single)
    borders = np.flatnonzero(np.diff(places) > 1)
    firsts, lasts = (codes[places[at]].tolist() for at in (np.append(0, borders + 1), np.append(borders, -1)))
    ranges = ("-".join(map(_in_class, dict.fromkeys(ends))) for ends in zip(firsts, lasts, strict=True))
    return f"[{'^' if negated else ''}{''.join(ranges)}]"


def _in_class(code: int) -> str:
    char = chr(code)
    return f"\\{char}" if char in r"\]^-[" else char
