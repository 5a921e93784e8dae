"""Tables for the text kernels: jieba's dictionary and model, the stop words, character classes and OpenCC's words.

They are made from the packages' own dictionaries and the user dictionaries, and stored in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import unicodedata
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import building, commit, write_json
from danqing.engine.stages import html_names, ideographs, simplified
from danqing.kernels.text import captions, cleaning, markup, segmentation, trie
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
from danqing.kernels.text.segmentation import (
    ADJECTIVE,
    FORCED_SPLIT,
    HAN_FIRST,
    HAN_LAST,
    IMPOSSIBLE,
    KIND_BITS,
    NOUN,
    STOP_WORD,
    VERB,
    Dictionary,
)
from danqing.kernels.text.trie import build, build_entries
from danqing.trt_models.package_files import cache_folder, package_file, sha256

STATES = "BMES"
PARTS_OF_SPEECH = {"n": NOUN, "v": VERB, "a": ADJECTIVE}
KEPT_SYMBOLS = frozenset("°℃℉№™©®")
"""Symbols that captions use as text, although Unicode has them in the category So, like emoji."""


@cache
def open_dictionary(user_dictionaries: tuple[Path, ...] = ()) -> Dictionary:
    """Loads jieba's tables with the words of user dictionaries added; makes them if they are not in the cache.

    Args:
        user_dictionaries: text files with `word [frequency] [tag]` on each line, as for `jieba.load_userdict`.

    Raises:
        DanqingError: jieba cannot read a user dictionary; names the file.
    """
    digest = hashlib.sha256(_layout() + metadata.version("jieba").encode() + _stop_words().encode())
    for path in user_dictionaries:
        digest.update(file_hash(path).encode())
    tables = _cached(f"dictionary-{digest.hexdigest()[:12]}", lambda: _make_dictionary(user_dictionaries))
    return Dictionary(**tables)


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a user dictionary.

    Raises:
        DanqingError: the file cannot be read.
    """
    try:
        return sha256(path)
    except OSError as problem:
        raise DanqingError(f"{path}: cannot read the user dictionary: {problem.strerror}") from None


def character_classes() -> np.ndarray:
    """Loads the class bits of `kernels.text.captions` of every code point: uint16 (0x110000,)."""
    return cleaning_tables().classes


@cache
def cleaning_tables() -> cleaning.Tables:
    """Loads what characters and words become; makes the tables if they are not in the cache.

    Raises:
        DanqingError: OpenCC's dictionaries cannot be read.
    """
    digest = hashlib.sha256(_layout() + unicodedata.unidata_version.encode() + metadata.version("opencc").encode())
    return cleaning.Tables(**_cached(f"characters-{digest.hexdigest()[:12]}", _make_cleaning_tables))


def _layout() -> bytes:
    """Returns the sources that define the bits of the tables; their hash names the tables of this version."""
    data = sys.modules[__name__], html_names, ideographs, simplified
    kernels = captions, cleaning, markup, segmentation, trie
    return b"".join(Path(str(module.__file__)).read_bytes() for module in (*data, *kernels))


def _cached(name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Loads tables from the cache folder; makes and stores them if they are not there."""
    folder = cache_folder() / "tables" / name
    index = folder / "index.json"
    if not index.exists():
        with building(folder, f"the table {name}"):
            if not index.exists():  # another process can have made it
                tables = make()
                for key, table in tables.items():
                    with commit(folder / f"{key}.npy") as file:
                        np.save(file, table)
                write_json(index, sorted(tables))
    return {key: np.load(folder / f"{key}.npy") for key in json.loads(index.read_text())}


def _make_dictionary(user_dictionaries: tuple[Path, ...]) -> dict[str, np.ndarray]:
    """Makes the tables from the dictionaries as jieba has parsed them, so that every line has jieba's meaning."""
    import jieba
    import jieba.posseg
    from jieba.finalseg import Force_Split_Words, emit_P, start_P, trans_P

    jieba.setLogLevel("WARNING")
    forced = set(Force_Split_Words)
    tokenizer = jieba.Tokenizer()
    tokenizer.tmp_dir = str(cache_folder())
    tokenizer.initialize()
    tagger = jieba.posseg.POSTokenizer(tokenizer)
    for path in user_dictionaries:
        try:
            with path.open("rb") as file:
                tokenizer.load_userdict(file)
        except (OSError, ValueError) as problem:
            raise DanqingError(
                f"{path}: {problem}; a user dictionary has `word [frequency] [tag]` on each line, in UTF-8"
            ) from None
    tagger.makesure_userdict_loaded()
    never = Force_Split_Words - forced
    Force_Split_Words.intersection_update(forced)  # a global of jieba: restore it
    stop_words = set(_stop_words().split())
    frequencies = {word: count for word, count in tokenizer.FREQ.items() if count > 0}
    # `math.log` as in jieba: NumPy's logarithm can differ in the last bit. An unknown word has the frequency 1.
    total = math.log(tokenizer.total)
    counts = [1, *sorted(set(frequencies.values()))]
    weights = np.array([math.log(count) - total for count in counts])
    number = {count: position for position, count in enumerate(counts) if position > 0}
    words = {}
    for word in frequencies.keys() | stop_words | never:
        kinds = STOP_WORD * (word in stop_words) | FORCED_SPLIT * (word in never)
        if word in frequencies:
            kinds |= PARTS_OF_SPEECH.get(tagger.word_tag_tab.get(word, "x")[:1], 0)
        if ord(word[0]) <= 0xFFFF:
            words[word] = number.get(frequencies.get(word, 0), 0) << KIND_BITS | kinds
    tree = build({word: value for word, value in sorted(words.items()) if value})
    emit = np.full((HAN_LAST - HAN_FIRST + 1, 4), IMPOSSIBLE)
    change = np.full((4, 4), IMPOSSIBLE)
    for column, state in enumerate(STATES):
        for character, value in emit_P[state].items():
            if HAN_FIRST <= ord(character) <= HAN_LAST:
                emit[ord(character) - HAN_FIRST, column] = value
        for following, value in trans_P[state].items():
            change[column, STATES.index(following)] = value
    return {
        "roots": tree.roots,
        "entries": tree.entries,
        "weights": weights,
        "start": np.array([start_P[state] for state in STATES]),
        "change": change,
        "emit": emit,
    }


def _stop_words() -> str:
    """Returns JioNLP's Chinese stop words, one per line."""
    return package_file("jionlp", "jionlp/dictionary/stopwords.txt").read_text(encoding="utf-8")


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
            kind |= LETTER | SCRIPTS.get(unicodedata.name(character, "").split(" ")[0].split("-")[0], 0)
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


SCRIPTS = {"CJK": HAN, "HIRAGANA": KANA, "KATAKANA": KANA, "HALFWIDTH": KANA, "HANGUL": HANGUL, "LATIN": LATIN}
"""First word of a letter's Unicode name → its class."""


def is_ornament(character: str, category: str) -> bool:
    """Returns whether a character is an emoji, dingbat, skin tone, keycap or variation selector."""
    code = ord(character)
    if category == "So":
        return character not in KEPT_SYMBOLS
    if code in (0x25FD, 0x25FE):  # emoji of the category Sm that need no variation selector
        return True
    return 0xFE00 <= code <= 0xFE0F or 0x1F3FB <= code <= 0x1F3FF or 0xE0100 <= code <= 0xE01EF or code == 0x20E3
