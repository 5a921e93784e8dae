"""Character tables of the kernels: classes, and the replacements of characters and words in cleaning.

The tables are made from Unicode's data, HTML's names and OpenCC's dictionaries, and stored in the cache folder.
"""

from __future__ import annotations

import sys
import unicodedata
from functools import cache
from importlib import metadata

import numpy as np

from danqing.engine.core.errors import DanqingError
from danqing.engine.stages import html_names, ideographs, simplified
from danqing.engine.stages.table_cache import load_tables
from danqing.kernels.text import captions, cleaning, markup, trie
from danqing.kernels.text.captions import (
    ALPHANUMERIC,
    CHINESE,
    CODE_POINTS,
    CONVERTED,
    DIGIT,
    DROP,
    FORM,
    HAN,
    HANGUL,
    JAPANESE,
    KANA,
    LATIN,
    LETTER,
    NARROW,
    SPACE,
)
from danqing.kernels.text.trie import build_entries

KEPT_SYMBOLS = frozenset("°℃℉№™©®")
"""Symbols that captions use as text, although Unicode has them in the category So, like emoji."""


def character_classes() -> np.ndarray:
    """Loads the class bits of `kernels.text.captions` of every code point: uint16 (0x110000,)."""
    return cleaning_tables().classes


@cache
def cleaning_tables() -> cleaning.Tables:
    """Loads what characters and words become; makes the tables if they are not in the cache.

    Raises:
        DanqingError: OpenCC's dictionaries cannot be read.
    """
    sources = sys.modules[__name__], html_names, ideographs, simplified, captions, cleaning, markup, trie
    contents = unicodedata.unidata_version, metadata.version("opencc")
    return cleaning.Tables(**load_tables("characters", sources, contents, _make_cleaning_tables))


def _make_cleaning_tables() -> dict[str, np.ndarray]:
    forms, converted = ideographs.unified_forms(), simplified.simplified_words()
    classes = _make_classes()
    for bit, words in ((FORM, forms), (CONVERTED, converted)):
        classes[sorted({ord(word[0]) for word in words})] |= bit
    targets = converted | forms | html_names.entity_targets()
    for word, target in targets.items():
        if len(target.encode()) > cleaning.MAX_WORD_GROWTH * len(word.encode()):
            raise DanqingError(f"opencc {metadata.version('opencc')}: {target} is too long for {word}; install 1.4.2")
    values = html_names.element_values() | {word: value for value, word in enumerate(targets, markup.FIRST_TARGET)}
    lengths = [0] * markup.FIRST_TARGET + list(map(len, targets.values()))
    return {
        "classes": classes,
        "entries": build_entries(values),
        "starts": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        "targets": np.array([ord(character) for target in targets.values() for character in target], np.int32),
        "numbers": html_names.numeric_entities(),
    }


def _make_classes() -> np.ndarray:
    classes = np.zeros(CODE_POINTS, np.uint16)
    for code in range(CODE_POINTS):
        character = chr(code)
        category = unicodedata.category(character)
        if category in ("Cn", "Cs", "Co", "Cc", "Cf"):  # unassigned, surrogates, private use, controls, format
            classes[code] = SPACE if character.isspace() else DROP
            continue
        kind = ALPHANUMERIC * character.isalnum() | DIGIT * character.isdigit() | SPACE * character.isspace()
        if character.isalpha():
            name = unicodedata.name(character, "").removeprefix("HALFWIDTH ")
            kind |= LETTER | SCRIPTS.get(name.split(" ")[0].split("-")[0], 0)
        if is_ornament(character, category):
            kind |= DROP
        if 0xFF10 <= code <= 0xFF5A and character.isalnum():
            kind |= NARROW
        if character in ideographs.JAPANESE:
            kind |= JAPANESE
        elif ideographs.is_chinese_only(character):
            kind |= CHINESE
        classes[code] = kind
    return classes


SCRIPTS = {"CJK": HAN, "HIRAGANA": KANA, "KATAKANA": KANA, "HANGUL": HANGUL, "LATIN": LATIN}
"""First word of a letter's Unicode name, after `HALFWIDTH` → its class."""


def is_ornament(character: str, category: str) -> bool:
    """Returns whether a character is an emoji, dingbat, skin tone, keycap or variation selector."""
    code = ord(character)
    if category == "So":
        return character not in KEPT_SYMBOLS
    if code in (0x25FD, 0x25FE):  # emoji of the category Sm that need no variation selector
        return True
    return 0xFE00 <= code <= 0xFE0F or 0x1F3FB <= code <= 0x1F3FF or 0xE0100 <= code <= 0xE01EF or code == 0x20E3
