"""Terms and patterns of advertisements."""

from __future__ import annotations

import numpy as np
import pytest

from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings
from danqing.engine.stages.characters import character_classes
from danqing.engine.stages.dictionary import open_dictionary
from danqing.kernels.text.captions import measure, measure_rows
from danqing.kernels.text.lexicon import Patterns, weigh, weigh_rows
from danqing.kernels.text.trie import build
from tests.kernels.text.texts import DIFFICULT_TEXTS, random_texts

TERMS = {"广告": 0.5, "广告位": 1.0, "位": 0.25, "招租": 1.0, "好": 0.01}
PATTERNS = Patterns(phone=1, messenger=10, link=100, price=1000)


def weights(device: Device, texts: list[str], patterns: Patterns = Patterns()) -> list[float]:  # noqa: B008
    terms = build({term: round(100 * weight) for term, weight in TERMS.items()})
    return [float(weight) for weight in weigh(device, Strings.of(texts), terms, patterns)]


def test_each_distinct_term_counts_once(device: Device) -> None:
    texts = ["广告位招租", "广告广告广告", "", "地广告", *DIFFICULT_TEXTS, *random_texts(200)]
    expected = [sum(weight for term, weight in TERMS.items() if term in text) for text in texts]
    assert weights(device, texts) == pytest.approx(expected)


def test_latin_terms_match_in_any_case_and_not_within_words(device: Device) -> None:
    terms, texts = build({"加v": 100, "vx": 200}), ["加V", "加vip", "加VX号", "avx", "vx2", "2VX", "vxa"]
    weights = [float(weight) for weight in weigh(device, Strings.of(texts), terms, Patterns())]
    assert weights == [1, 0, 2, 0, 2, 2, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("联系电话13812345678", 1),
        ("电话：138-1234-5678，微信同号", 1),
        ("热线400-123-4567", 1),
        ("座机010-12345678 或 0755-1234567", 2),
        ("加微信abc12345了解", 10),
        ("薇信：abc_12345", 10),
        ("VX:lucky888", 10),
        ("QQ群 123456789", 10),
        ("详见http://example.com/a", 100),
        ("www.example.cn", 100),
        ("访问 taobao.com 购买", 100),
        ("只要9.9元", 1000),
        ("￥199起", 1000),
        ("100块钱", 1000),
        # no patterns
        ("2024年10月1日", 0),
        ("编号12345678901234567", 0),
        ("比例是13812.345678", 0),
        ("微信是一款软件", 0),
        ("元代青花瓷 1368元旦", 0),
        ("版本3.10.2 a.b.c", 0),
        ("iPhone15 Pro", 0),
    ],
)
def test_patterns_of_advertisements(device: Device, text: str, expected: float) -> None:
    assert weights(device, [text], PATTERNS) == [expected]


def test_kernels_are_compiled_once_for_all_kinds_of_rows(device: Device) -> None:
    """Rows as Arrow stores them, with 32-bit offsets and read-only; as kernels write them; and weights as integers."""
    stored, written = (
        Strings.of(["一只橘猫"]),
        Strings(np.array([0, 3]), np.frombuffer("猫".encode(), np.uint8).copy(), 3),
    )
    terms, kernels = build({"猫": 100}), (weigh_rows, measure_rows)
    counts = []
    for rows, patterns in ((stored, Patterns()), (written, Patterns(1, 1, 1, 1))):
        weigh(device, rows, terms, patterns)
        measure(device, rows, open_dictionary(), character_classes())
        counts.append([len(kernel._on_cpu.signatures) for kernel in kernels])
    assert counts[0] == counts[1]
