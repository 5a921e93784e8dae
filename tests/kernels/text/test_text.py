"""Measures, compared with plain Python."""

from __future__ import annotations

import math
from collections import Counter

import jieba
import jieba.posseg
import numpy as np
import pytest

from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings
from danqing.engine.stages.characters import character_classes
from danqing.engine.stages.dictionary import open_dictionary
from danqing.kernels.text.captions import MEASURES, measure
from danqing.trt_models.package_files import package_file
from tests.kernels.text.texts import DIFFICULT_TEXTS, random_texts

STOP_WORDS = set(package_file("jionlp", "jionlp/dictionary/stopwords.txt").read_text(encoding="utf-8").split())
TAGGER = jieba.posseg.POSTokenizer()
TAGGER.initialize()


def measures_of(device: Device, texts: list[str]) -> dict[str, np.ndarray]:
    figures = measure(device, Strings.of(texts), open_dictionary(), character_classes())
    return dict(zip(MEASURES, figures.T, strict=True))


def longest_repetition(text: str) -> int:
    best = 0
    for unit in range(1, 5):
        for start in range(len(text)):
            end = start + unit
            while end < len(text) and text[end] == text[end - unit]:
                end += 1
            best = max(best, end - start if end - start >= 2 * unit else 0)
    return best


def test_measures_equal_plain_python(device: Device) -> None:
    texts = [*DIFFICULT_TEXTS, *random_texts(500, seed=1), "我的 C 和 A 和 I", "附表 B 与 V"]
    measured = measures_of(device, texts)
    for row, text in enumerate(texts):
        words = [token for token in jieba.lcut(text) if any(map(str.isalnum, token))]
        counts = Counter(words).values()
        entropy = -sum(n / len(words) * math.log2(n / len(words)) for n in counts) if words else 0.0
        solid = sum(not character.isspace() for character in text) or 1
        letters = sum(map(str.isalpha, text)) or 1
        assert measured["words"][row] == len(words)
        stops = sum(word in STOP_WORDS for word in words) / (len(words) or 1)
        assert measured["stop_word_share"][row] == pytest.approx(stops)
        nouns = sum(TAGGER.word_tag_tab.get(word, "x").startswith("n") for word in words)
        assert measured["nouns"][row] == nouns
        assert measured["text_entropy"][row] == pytest.approx(entropy, abs=1e-6)
        assert measured["longest_repetition"][row] == longest_repetition(text)
        assert measured["digit_share"][row] == pytest.approx(sum(map(str.isdigit, text)) / solid)
        latin = sum("a" <= c <= "z" or "A" <= c <= "Z" for c in text if c.isascii()) / letters
        assert measured["latin_share"][row] >= np.float32(latin)


def test_shares_of_scripts(device: Device) -> None:
    measured = measures_of(device, ["汉字ab", "ひらカナ漢字", "한글漢", "①②", "，。", "漢ｶﾡ"])
    assert measured["han_share"].tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 3, 0, 0, 1 / 3])
    assert measured["kana_share"].tolist() == pytest.approx([0, 2 / 3, 0, 0, 0, 1 / 3])
    assert measured["symbol_share"].tolist() == pytest.approx([0, 0, 0, 0, 1, 0])


def test_repetitions_of_long_texts_are_measured(device: Device) -> None:
    texts = ["好" * 400_000, "😀" * 10_000, "e" + "\u0301" * 100_000, "哈 " * 200_000]
    assert measures_of(device, texts)["longest_repetition"].tolist() == [400_000, 10_000, 100_000, 400_000]


def test_results_do_not_depend_on_threads_or_other_rows(device: Device) -> None:
    texts = random_texts(200, seed=2)
    together = measure(device, Strings.of(texts), open_dictionary(), character_classes())
    one_by_one = [measure(device, Strings.of([text]), open_dictionary(), character_classes())[0] for text in texts]
    assert (together == np.array(one_by_one)).all()
