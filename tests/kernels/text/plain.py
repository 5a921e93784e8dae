"""Cleaning in plain Python: regular expressions, `html`, `unicodedata` and OpenCC."""

from __future__ import annotations

import html
import re
import unicodedata
from functools import cache

from opencc import OpenCC

from danqing.engine.stages.characters import is_ornament
from danqing.engine.stages.ideographs import JAPANESE, is_chinese_only, unified_forms

_INLINE = "a|abbr|b|bdi|bdo|big|cite|code|del|em|font|i|ins|kbd|mark|nobr|q|s|small|span|strike|strong|sub|sup|tt|u|wbr"
_BLOCK = (
    "address|article|aside|blockquote|body|br|button|center|dd|div|dl|dt|figcaption|figure|footer|form|h[1-6]|head|"
    "header|hr|html|iframe|img|input|label|li|link|main|meta|nav|object|ol|option|p|picture|pre|script|section|select|"
    "source|style|svg|table|tbody|td|textarea|tfoot|th|thead|title|tr|ul|video"
)
# The case of ASCII letters only does not matter, as in browsers: `ſ` and the Kelvin sign are no letters of a name.
_ATTRIBUTES = r"""(?:\s+[\w:-]+\s*+=\s*+(?:"[^"<]*+"|'[^'<]*+'|[^\s"'<>]++))*+\s*+/?>"""
_HIDDEN = re.compile(
    r"<((?ai:script))(?=[\s>])[^<>]*+>[^<]*+</(?ai:script)\s*>|"
    r"<((?ai:style))(?=[\s>])[^<>]*+>[^<]*+</(?ai:style)\s*>|<!--[^<>]*+>"
)
_BLOCK_TAG = re.compile(rf"</?(?ai:{_BLOCK}){_ATTRIBUTES}")
_INLINE_TAG = re.compile(rf"</?(?ai:{_INLINE}){_ATTRIBUTES}")


def remove_markup(text: str) -> str:
    """Decodes the entities of a text, twice, and removes tags."""
    text = html.unescape(html.unescape(text))
    return _INLINE_TAG.sub("", _BLOCK_TAG.sub(" ", _HIDDEN.sub(" ", text)))


def normalize(text: str) -> str:
    """Removes markup and replaces compatibility characters."""
    return remove_markup(text).translate(_forms())


def clean(text: str) -> str:
    """Removes emoji, special characters and surplus space from a normalized text."""
    kept = []
    for character, following in zip(text, f"{text[1:]}\0", strict=False):
        is_han = unicodedata.name(character, "").startswith("CJK") and character.isalpha()
        if character.isspace():
            kept.append(" ")
        elif not (_is_dropped(character) or (following in ("\ufe0f", "\u20e3") and not is_han)):
            narrow = "\uff10" <= character <= "\uff5a" and character.isalnum()
            kept.append(chr(ord(character) - 0xFEE0) if narrow else character)
    return re.sub(" +", " ", "".join(kept)).strip(" ")


def simplify(text: str) -> str:
    """Converts a cleaned text to Simplified Chinese."""
    return _converter().convert(text)


def japanese(text: str) -> int:
    """Counts the characters of a cleaned text that only Japanese uses, minus those that only Chinese uses."""
    return sum((character in JAPANESE) - is_chinese_only(character) for character in text)


@cache
def _is_dropped(character: str) -> bool:
    category = unicodedata.category(character)
    return category in ("Cn", "Cs", "Co", "Cc", "Cf") or is_ornament(character, category)


@cache
def _forms() -> dict[int, str]:
    return str.maketrans(unified_forms())


@cache
def _converter() -> OpenCC:
    return OpenCC("t2s")
