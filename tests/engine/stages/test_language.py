"""The rule that combines scripts and the language model."""

from __future__ import annotations

import numpy as np
import pytest

from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings
from danqing.engine.demo.crawl import photographs
from danqing.engine.stages.dictionary import character_classes, open_dictionary
from danqing.engine.stages.language import languages, open_identifier
from danqing.kernels.text.captions import measure


def identify(device: Device, texts: list[str], japanese: list[int] | None = None) -> tuple[list[str], np.ndarray]:
    """Returns the language of each text and the confidence that it is Chinese."""
    rows = Strings.of(texts)
    measures = measure(device, rows, open_dictionary(), character_classes())
    counts = np.array(japanese or [0] * len(texts), np.int32)
    codes, confidence = languages(device, rows, counts, measures)
    assert codes.dtype == np.int16 and confidence.dtype == np.float32
    return open_identifier().names.take(codes).to_pylist(), confidence


def test_the_script_decides_short_captions_that_the_model_does_not_know(device: Device) -> None:
    texts = ["一只小猫", "猫", "苹果 iPhone 15 Pro Max 手机壳", "公园", "黄山日出", "木桌"]
    names, confidence = identify(device, texts)
    assert names == ["zh"] * len(texts) and (confidence == 1).all()


def test_the_language_of_other_texts_is_the_models(device: Device) -> None:
    texts = ["A cup of coffee on a wooden table", "Une tasse de café sur la table", "Чашка кофе на деревянном столе"]
    texts += ["これは公園で撮った写真です", "공원에서 찍은 사진입니다", "The Great Wall of China (长城) in spring"]
    names, confidence = identify(device, texts)
    assert names == ["en", "fr", "ru", "ja", "ko", "en"]
    assert (confidence[:3] == 0).all() and (confidence[3:] < 0.5).all()


def test_confidence_is_limited_by_the_share_of_kana_and_hangul(device: Device) -> None:
    # One of seven East Asian letters is a kana; words of other scripts do not count.
    _, confidence = identify(device, ["这家商店の水果", "这家商店の水果 Fruit"])
    assert confidence == pytest.approx([1 - 2 / 7, 1 - 2 / 7], abs=1e-6)


def test_characters_that_only_japanese_uses_make_a_caption_japanese(device: Device) -> None:
    names, confidence = identify(device, ["东京駅前広场"] * 3, [1, 0, -1])
    assert names == ["ja", "zh", "zh"] and confidence.tolist() == [0, 1, 1]


def test_captions_of_the_demo_are_identified(device: Device) -> None:
    records = photographs()
    chinese = [caption for record in records for caption in record["captions"]]
    assert (identify(device, chinese)[1] >= 0.5).mean() >= 0.97
    names, confidence = identify(device, [record["english"] for record in records])
    assert (confidence == 0).all() and names.count("en") >= 0.95 * len(names)


def test_a_batch_without_rows(device: Device) -> None:
    names, confidence = identify(device, [])
    assert names == [] and len(confidence) == 0
