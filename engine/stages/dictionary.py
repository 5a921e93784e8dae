"""Jieba's dictionary and model, and the stop words, as tables of the kernels.

They are made from the packages' own dictionaries and the user dictionaries, and stored in the cache folder.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np

from danqing.engine.core.errors import DanqingError
from danqing.engine.stages.table_cache import load_tables
from danqing.kernels.text import segmentation, trie
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
from danqing.kernels.text.trie import build
from danqing.trt_models.package_files import cache_folder, package_file, sha256

STATES = "BMES"
PARTS_OF_SPEECH = {"n": NOUN, "v": VERB, "a": ADJECTIVE}


@cache
def open_dictionary(user_dictionaries: tuple[Path, ...] = ()) -> Dictionary:
    """Loads jieba's tables with the words of user dictionaries added; makes them if they are not in the cache.

    Args:
        user_dictionaries: text files with `word [frequency] [tag]` on each line, as for `jieba.load_userdict`.

    Raises:
        DanqingError: jieba cannot read a user dictionary; names the file.
    """
    contents = [metadata.version("jieba"), _stop_words(), *map(file_hash, user_dictionaries)]
    sources = sys.modules[__name__], segmentation, trie
    return Dictionary(**load_tables("dictionary", sources, contents, lambda: _make_dictionary(user_dictionaries)))


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a user dictionary.

    Raises:
        DanqingError: the file cannot be read.
    """
    try:
        return sha256(path)
    except OSError as problem:
        raise DanqingError(f"{path}: cannot read the user dictionary: {problem.strerror}") from None


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
