from __future__ import annotations

import jieba
import numpy as np
import pytest
from opencc import OpenCC

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.core.text_column import TextColumn
from danqing.engine.stages.base import Context
from danqing.engine.stages.ideographs import JAPANESE, is_chinese_only
from danqing.engine.stages.text import Caption, Refine
from danqing.trt_models.model_set import ModelSet

MODELS = ModelSet({"text_safety": "jionlp-pornography", "caption_safety": "jionlp-advertising"})


def refined(device: Device, *captions: str) -> Batch:
    batch = Batch({"row": np.arange(len(captions)), "caption": TextColumn.of(captions)})
    context = Context(device, MODELS, frozenset())
    Caption(context)(batch)
    Refine(context)(batch)
    return batch


def test_words_equal_the_tokens_of_jieba_that_are_words(device: Device) -> None:
    captions = ["一只橘猫趴在窗台上晒太阳", "iPhone 15 Pro，256GB！", "。。。", "", "南京市长江大桥 2024年", "😀好看😀"]
    expected = [sum(any(x.isalnum() for x in token) for token in jieba.lcut(c)) for c in captions]
    assert refined(device, *captions)["words"].tolist() == expected
    assert refined(device, "我来到北京清华大学")["words"].tolist() == [4]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("漢字與電腦軟體", "汉字与电脑软体"),
        ("劝君今夜须沈醉，沈从文瞭解", "劝君今夜须沉醉，沈从文了解"),
        ("🎉好消息👨‍👩‍👧来了❤️🇨🇳1️⃣", "好消息来了"),
        ("★☆精选■图片◆", "精选图片"),
        ("ＡＢＣ１２３，全角　空格", "ABC123，全角 空格"),
        ("零\u200b宽\ufeff字符\x07", "零宽字符"),
        ("气温25℃，Intel® 处理器", "气温25℃，Intel® 处理器"),
        ("  多余   空白\n换行 ", "多余 空白 换行"),
        # compatibility ideographs and radicals, as PDF files have them
        ("⼤树下⾯的⼩猫", "大树下面的小猫"),
        ("⻓城与⻢车，⿓⻛", "长城与马车，龙风"),
        # entities and tags, also escaped twice
        ("红色&nbsp;&#27773;&#x8f66;&hellip;", "红色 汽车…"),
        ("小猫&amp;小狗 &amp;amp; R&D", "小猫&小狗 & R&D"),
        ("&lt;b&gt;红&lt;/b&gt;色<br/>汽车", "红色 汽车"),
        ("&amp;lt;p class=&amp;quot;a&amp;quot;&amp;gt;小猫", "小猫"),
        ('<a href="http://a.example">小<i>猫</i></a><img src=x alt="a>b">', "小猫"),
        ("图<script>var a = 1;</script>片<!-- note -->", "图 片"),
        ("若 a < b 且 3<5，<公园> <Windows 11>", "若 a < b 且 3<5，<公园> <Windows 11>"),
        ("零&#8203;宽&#0;&unknown;", "零宽&unknown;"),
    ],
)
def test_clean_captions_are_simplified_and_plain(device: Device, caption: str, expected: str) -> None:
    assert refined(device, caption, expected)["text_clean"].to_pylist() == [expected, expected]


def test_entropy_equals_the_paper(device: Device) -> None:
    batch = refined(device, "", "图 图 图 图", "a b", "a a b c")
    assert batch["text_entropy"].tolist() == pytest.approx([0, 0, 1, 1.5])


def test_shares_and_parts_of_speech(device: Device) -> None:
    batch = refined(device, "小猫和小狗在公园里奔跑", "因为所以但是而且", "图片图片图片图片图片图片")
    assert batch["nouns"][0] >= 3 and batch["nouns"][1] == 0
    assert batch["stop_word_share"][1] == 1 and batch["stop_word_share"][0] < 1
    assert batch["text_entropy"][2] == 0 and batch["text_entropy"][0] > 2


def test_unsafe_terms_are_counted(device: Device) -> None:
    batch = refined(device, "公园里的一只小猫", "无抵押贷款", "网络工作找代理", "公司的网络设备")
    # 无抵押贷款 is a term, 无抵押 and 无抵押贷款 are patterns: the larger weight of an equal term counts
    assert batch["unsafe_caption"].tolist() == [0.0, 1.5, 2.0, 0.5]
    weights = MODELS.terms("text_safety")
    texts = [f"前{term}后{term}" for term in list(weights)[:50]] + ["软件的使用方式"]
    expected = [sum(weight for term, weight in weights.items() if term in text) for text in texts]
    assert MODELS.text_classifier("text_safety", device)(TextColumn.of(texts)).tolist() == expected


def test_markup_and_compatibility_ideographs_are_not_measured(device: Device) -> None:
    plain, marked = "一只橘猫趴在窗台上晒太阳", "<p>⼀只橘猫&#36276;在窗台上<b>晒</b>太阳</p>"
    batch = refined(device, plain, marked)
    assert batch["caption"].to_pylist()[1] == marked  # the caption itself stays as read
    assert batch["text_clean"].to_pylist() == [plain, plain]
    for name in ("words", "nouns", "text_entropy", "symbol_share", "latin_share"):
        assert batch[name][0] == batch[name][1]


def test_japanese_characters_are_in_no_chinese_character_set() -> None:
    assert all(c.encode("shift_jis") and not is_chinese_only(c) for c in JAPANESE)
    for encoding in ("gb2312", "big5"):
        assert not "".join(JAPANESE).encode(encoding, "ignore")
    assert OpenCC("t2s").convert("".join(sorted(JAPANESE))) == "".join(sorted(JAPANESE))
    han = list(map(chr, range(0x4E00, 0xA000)))
    old, new = (
        dict(zip(han, OpenCC(name).convert("\n".join(han)).split("\n"), strict=True)) for name in ("jp2t", "t2jp")
    )
    shinjitai = {c for c in han if old[c] != c} | {new[c] for c in han if new[c] != c}
    assert shinjitai >= JAPANESE - set("働込枠")


def test_hostile_captions_do_not_disturb_other_rows(device: Device) -> None:
    hostile = ["", "\ud800", "好" * 350_000, "a" * 10**6, "😀" * 10_000, "e" + "\u0301" * 10**5, "\u202e反\u202c" * 999]
    hostile += ["漢字" * 10**5, "ab " * 300_000, "مرحبا" * 999, "\x00" * 999, "加微信a1b2c3 " * 10**4]
    captions = [caption for bad in hostile for caption in (bad, "一只小猫在草地上")]
    batch = refined(device, *captions)
    alone = refined(device, "一只小猫在草地上")
    assert set(batch["text_clean"].to_pylist()[1::2]) == {"一只小猫在草地上"}
    for name in ("words", "nouns", "text_entropy", "chinese_confidence", "unsafe_caption"):
        assert set(batch[name][1::2]) == {alone[name][0]}


@pytest.mark.parametrize(
    ("caption", "chinese"),
    [
        ("一只小猫", True),
        ("蓝色的桌子上放着一杯咖啡", True),
        ("台北的夜景", True),
        # the East Asian part decides, if it has a Han character for every two other words
        ("iPhone 15 Pro Max 手机壳 苹果", True),
        ("Nike Air Max 90 Essential 跑鞋", True),
        ("α粒子 и β粒子", True),
        ("The Great Wall of China (长城) is one of the greatest sights", False),
        ("iPhone 15 Pro Max ケース かわいい 東京", False),
        # Japanese without kana has characters that Chinese does not use
        ("経済産業省発表労働統計調査結果概要", False),
        ("営業時間午前九時半至午後六時定休日毎週水曜日", False),
        ("東京都千代田区丸之内一丁目東京駅前広場", False),
        ("東京駅 Tokyo Station", False),
        ("东京駅前的广场", True),
        ("經濟部發表的勞動統計調查結果", True),
        ("東京駅—Café", False),  # punctuation and accents that only Chinese character sets have do not count
        ("衛生署說明產業內容", True),
        ("A cup of coffee on a wooden table", False),
        ("これは公園で撮った写真です", False),
        ("東京タワーの夜景", False),
        ("공원에서 찍은 사진입니다", False),
        ("12345 67890", False),
        ("", False),
    ],
)
def test_chinese_is_identified(device: Device, caption: str, chinese: bool) -> None:
    assert (refined(device, caption)["chinese_confidence"][0] >= 0.5) == chinese
