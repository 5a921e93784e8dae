"""Decodes text of unknown encoding and reads JSON of any shape, so that every later step can store the result."""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections import Counter
from typing import Any

from danqing.engine.core.carried import MAX_DEPTH
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.escape import valid_text

UTF8 = "utf-8"
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks; that of UTF-32 begins with that of UTF-16."""
WIDE = re.compile("[\u0800-\ufffc\ufffe-\U0010ffff]")
"""Characters of three or more bytes in UTF-8, as ideographs are. Text in another encoding rarely looks like UTF-8 with
such characters, but can look like UTF-8 with characters of two bytes: 一只猫 in GBK is һֻè in UTF-8."""
MIN_VALID = 4
"""Text with broken characters counts as UTF-8 if it has this many wide characters for each broken one."""
NARROW = re.compile("[\u00c0-\u07ff]{2,}")
MIN_FREQUENT = 0.7
"""UTF-8 that mixes scripts counts as another encoding if this share of its characters is frequent there. Phonetic
transcriptions (tɕʰiɛn), Arabic with digits and sizes (Ø30×Ø20) mix them, too; as GB18030 they are rare characters."""
SYMBOLS = range(0xA1, 0xA4)
"""First bytes of punctuation, in GB18030 and in Big5."""
JSON = json.JSONDecoder(parse_constant=lambda name: None)
"""NaN and infinities are no JSON, although Python writes them."""


class SampleError(Exception):
    """A part of one sample cannot be read. The message becomes the row's `error`."""


def detect(data: bytes) -> str | None:
    """Returns the encoding of a text: that of its byte order mark, UTF-8, GB18030 or Big5; None if it is none of them.

    Most Big5 text is valid GB18030, too. The encoding with the larger share of frequent characters is chosen; the codes
    of frequent characters lie in one range of each encoding (the first level of GB 2312, of Big5).

    >>> detect("一只猫".encode()), detect("一只猫".encode("gbk")), detect("一隻貓".encode("big5"))
    ('utf-8', 'gb18030', 'big5')
    """
    for mark, name in BOMS:
        if data.startswith(mark):
            return name
    is_utf8 = _decodes(data, UTF8)
    if not _mixes_scripts(data.decode(UTF8)) if is_utf8 else _is_broken_utf8(data):
        return UTF8
    shares = {name: _frequent_share(data, name) for name in ("gb18030", "big5") if _decodes(data, name)}
    if is_utf8 and max(shares.values(), default=0.0) < MIN_FREQUENT:
        return UTF8
    if not shares:
        return None
    return max(shares, key=lambda name: shares[name])


def _is_broken_utf8(data: bytes) -> bool:
    """Whether a text is UTF-8 except for a few bytes, or was cut inside a character."""
    text = data.decode(UTF8, "replace")
    valid, broken = len(WIDE.findall(text)), text.removesuffix("\ufffd").count("\ufffd")
    return valid > 0 and valid >= MIN_VALID * broken


def _mixes_scripts(text: str) -> bool:
    """Whether a text without wider characters has a word with letters of several scripts, as in no language."""
    if text.isascii() or WIDE.search(text):
        return False
    words = NARROW.findall(text)
    return any(len({unicodedata.name(c, "?").partition(" ")[0] for c in word} - {"COMBINING"}) > 1 for word in words)


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _frequent_share(data: bytes, encoding: str) -> float:
    """Share of the two-byte characters that are frequent characters of the encoding."""
    pairs = frequent = at = 0
    while at < len(data) - 1:
        lead, trail = data[at], data[at + 1]
        if lead < 0x80:
            at += 1
            continue
        at += 2
        if lead in SYMBOLS:
            continue
        pairs += 1
        if encoding == "big5":
            frequent += 0xA4 <= lead <= 0xC6
        else:
            frequent += 0xB0 <= lead <= 0xD7 and trail >= 0xA1
    return frequent / max(pairs, 1)


def check_encoding(name: str) -> str:
    """Returns the name of an encoding; empty stands for detection.

    Raises:
        DanqingError: Python knows no such encoding of text.
    """
    try:
        b"a".decode(name or UTF8)
    except (LookupError, ValueError):
        raise DanqingError(f"--encoding {name}: no such encoding; for example gb18030, big5, utf-16") from None
    return name


class Decoder:
    """Decodes texts, each by its own encoding, and counts those that are not UTF-8.

    Args:
        encoding: the encoding of all texts; empty: detected for each.
        counts: receives encoding → number of texts read with it, without UTF-8; None: a new counter.
    """

    def __init__(self, encoding: str = "", counts: Counter[str] | None = None) -> None:
        self.encoding = encoding
        self.counts = Counter[str]() if counts is None else counts

    def __call__(self, data: bytes) -> str:
        """Decodes one text; in UTF-8, broken bytes become U+FFFD.

        Raises:
            SampleError: the text is in no known encoding, or not in the given one.
        """
        if not self.encoding:
            try:
                text = data.decode(UTF8)
            except UnicodeDecodeError:
                pass
            else:
                if text.isascii() or WIDE.search(text):
                    return text.removeprefix("\ufeff")
        name = self.encoding or detect(data)
        if name is None:
            raise SampleError("in none of the encodings UTF-8, UTF-16, GB18030, Big5; name another with --encoding")
        if name == UTF8:
            return data.decode(UTF8, "replace")
        try:
            text = data.decode(name)
        except ValueError as problem:
            raise SampleError(f"cannot be read as {name}: {problem}") from None
        self.counts[name.removesuffix("-sig")] += name != "utf-8-sig"
        return valid_text(text.removeprefix("\ufeff"))


def parse_object(text: str) -> dict[str, Any]:
    """Reads a JSON object. NaN and infinities become null, lone surrogates U+FFFD.

    Raises:
        SampleError: the text is no JSON object, or is nested in more than `MAX_DEPTH` levels.
    """
    try:
        content = JSON.decode(text)
    except (ValueError, RecursionError) as problem:
        raise SampleError(f"not valid JSON: {problem or 'nested too deeply'}") from None
    if not isinstance(content, dict):
        raise SampleError(f"a JSON {type(content).__name__}, not an object")
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(content) > MAX_DEPTH:
        raise SampleError(f"nested in more than {MAX_DEPTH} levels")
    if "\\ud" in text or "\\uD" in text:
        content = _valid_strings(content)
    return content


def _depth(value: Any) -> int:
    """Counts the levels of nesting, up to `MAX_DEPTH` + 1."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        level = [
            item
            for entry in level
            if isinstance(entry, dict | list)
            for item in (entry.values() if isinstance(entry, dict) else entry)
        ]
        depth += 1
    return depth


def _valid_strings(value: Any) -> Any:
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, dict):
        return {valid_text(name): _valid_strings(item) for name, item in value.items()}
    return [_valid_strings(item) for item in value] if isinstance(value, list) else value
