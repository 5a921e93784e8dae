"""Cleaning and measures, compared with plain Python."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter

import jieba
import jieba.posseg
import numpy as np
import pytest

from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings
from danqing.engine.stages.dictionary import character_classes, open_dictionary, unified_forms
from danqing.kernels.text.captions import MEASURES, clean, measure, unify
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
    measured = measures_of(device, ["汉字ab", "ひらカナ漢字", "한글漢", "①②", "，。"])
    assert measured["han_share"].tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 3, 0, 0])
    assert measured["kana_share"].tolist() == pytest.approx([0, 2 / 3, 0, 0, 0])
    assert measured["hangul_share"].tolist() == pytest.approx([0, 0, 2 / 3, 0, 0])
    assert measured["symbol_share"].tolist() == pytest.approx([0, 0, 0, 0, 1])
    assert measures_of(device, ["東京駅", "东京站", "駅a"])["japanese_share"].tolist() == pytest.approx(
        [1 / 3, 0, 1 / 2]
    )


def test_compatibility_ideographs_become_those_of_nfkc(device: Device) -> None:
    blocks = (0x2F00, 0x2FD6), (0xF900, 0xFB00), (0x2F800, 0x2FA20)
    characters = [chr(code) for block in blocks for code in range(*block)]
    texts = ["前" + c + "a" + c for c in characters] + ["".join(characters), "".join(reversed(characters))]
    united = unify(device, Strings.of(texts), unified_forms()).arrow().to_pylist()
    assert united == [unicodedata.normalize("NFKC", text) for text in texts]


def test_radicals_become_ideographs_and_other_texts_stay(device: Device) -> None:
    united = unify(device, Strings.of(["⻓⻢⻚⻛⿔", "", "⺇\ufacf"]), unified_forms()).arrow().to_pylist()
    assert united == ["长马页风龜", "", "𠘨\U0002284a"]
    rows = Strings.of([*random_texts(300, seed=3), "ＡＢＣ，“”…①ﬁ℃"])
    assert unify(device, rows, unified_forms()) is rows


def test_every_emoji_of_unicode_is_removed(device: Device) -> None:
    emoji = pytest.importorskip("emoji")
    sequences = [text for text, entry in emoji.EMOJI_DATA.items() if entry["status"] == emoji.STATUS["fully_qualified"]]
    assert len(sequences) > 3500
    cleaned = clean(device, Strings.of([f"前{sequence}后" for sequence in sequences]), character_classes())
    kept = {s: text for s, text in zip(sequences, cleaned.arrow().to_pylist(), strict=True) if text != "前后"}
    assert not kept


def test_cleaning_is_linear_and_safe_on_hostile_text(device: Device) -> None:
    hostile = ["好" * 400_000, "😀" * 10_000, "e" + "\u0301" * 100_000, "\u202e" * 1000 + "字", "哈 " * 200_000]
    cleaned = clean(device, Strings.of(hostile), character_classes())
    lengths = [len(text) for text in cleaned.arrow().to_pylist()]
    assert lengths == [400_000, 0, 100_001, 1, 399_999]
    measured = measures_of(device, hostile)
    assert measured["longest_repetition"].tolist() == [400_000, 10_000, 100_000, 1000, 400_000]


def test_results_do_not_depend_on_threads_or_other_rows(device: Device) -> None:
    texts = random_texts(200, seed=2)
    together = measure(device, Strings.of(texts), open_dictionary(), character_classes())
    one_by_one = [measure(device, Strings.of([text]), open_dictionary(), character_classes())[0] for text in texts]
    assert (together == np.array(one_by_one)).all()
