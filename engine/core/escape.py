"""Makes text from files and archives safe to store and to show."""

from __future__ import annotations

import re

from danqing.engine.core.names import readable_name

UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, ESC and the C1 controls among them; not tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, embeddings, overrides and isolates of direction
    "\u2028\u2029\ud800-\udfff]"  # line and paragraph separator; lone surrogates, which UTF-8 cannot encode
)
"""Characters that make a terminal or a browser show something else than the text, or act on it (CVE-2021-42574)."""

SURROGATES = re.compile("[\ud800-\udfff]")


def valid_text(text: str) -> str:
    """Returns the text with U+FFFD for lone surrogates, which JSON and file names can hold and UTF-8 cannot."""
    return text if text.isascii() else SURROGATES.sub("\ufffd", text)


def escaped(text: str) -> str:
    r"""Replaces every unsafe character by its escape, `\xNN` or `\uNNNN`.

    >>> escaped("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escaped_json(text: str) -> str:
    r"""Replaces every unsafe character of a JSON text by `\uNNNN`, which JSON reads as the character itself."""
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def printable(value: object) -> str:
    r"""Returns text of one line for a message or a log: unsafe characters, tabs and line feeds become escapes.

    >>> printable("a\x1b[31m\nb")
    'a\\x1b[31m\\nb'
    """
    return escaped(readable_name(str(value))).replace("\t", r"\t").replace("\n", r"\n")
