"""Cleaning and Traditional to Simplified Chinese, compared with plain Python and OpenCC (`plain`)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html.entities import html5
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from opencc import OpenCC

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.strings import Strings
from danqing.engine.demo.crawl import photographs
from danqing.engine.stages import characters, simplified
from danqing.engine.stages.characters import cleaning_tables
from danqing.engine.stages.ideographs import unified_forms
from danqing.engine.stages.simplified import FOLDER, read_dictionary, simplified_words
from danqing.kernels.text.captions import CONVERTED
from danqing.kernels.text.cleaning import Tables, clean, normalize
from danqing.trt_models.package_files import package_file
from tests.kernels.text import plain
from tests.kernels.text.texts import DIFFICULT_TEXTS, random_markup, random_texts, random_words


def cleaned(device: Device, texts: Sequence[str], tables: Tables | None = None) -> list[str]:
    return clean(device, Strings.of(texts), tables or cleaning_tables()).text.arrow().to_pylist()


def normalized(device: Device, texts: Sequence[str]) -> list[str]:
    return normalize(device, Strings.of(texts), cleaning_tables()).arrow().to_pylist()


def assert_equal_to_plain_python(device: Device, texts: Sequence[str]) -> None:
    """Compares every result of the kernels; shows the texts that differ."""
    result = clean(device, Strings.of(texts), cleaning_tables())
    rows = zip(normalized(device, texts), result.text.arrow().to_pylist(), result.changed, result.japanese, strict=True)
    different = []
    for text, found in zip(texts, rows, strict=True):
        normal = plain.normalize(text)
        kept = plain.clean(normal)
        simple = plain.simplify(kept)
        expected = normal, simple, simple != text, plain.japanese(kept)
        if found != expected:
            different.append((text, found, expected))
    assert not different[:5]


def test_captions_equal_plain_python(device: Device) -> None:
    captions = [caption for photo in photographs() for caption in photo["captions"]]
    traditional = [list(map(OpenCC(name).convert, captions)) for name in ("s2t", "s2tw", "s2hk")]
    assert_equal_to_plain_python(device, [*captions, *chain(*traditional), *DIFFICULT_TEXTS, *random_texts(1000)])


def test_markup_equals_regular_expressions_and_unescape(device: Device) -> None:
    numbers = [*range(300), *range(0xD7F0, 0xD810), *range(0xFDC0, 0xFE00), *range(0xFFF0, 0x10010), 0x1FFFF]
    entities = [f"&{name}" for name in html5] + [f"&{name}x;" for name in html5] + [f"&#{n};" for n in numbers]
    entities += [f"a&#x{n:x}z" for n in [*numbers, *range(0x10FFF0, 0x110010), 2**31, 2**32 + 65, 2**64 + 65]]
    assert_equal_to_plain_python(device, entities + random_markup(20_000))


def test_numbers_of_entities_can_have_any_number_of_digits(device: Device) -> None:
    # Python converts up to 4,300 digits only.
    assert normalized(device, [f"&#{'9' * 5000};", f"&#{'0' * 5000}65;", f"&#x{'f' * 5000}"]) == [
        "\ufffd",
        "A",
        "\ufffd",
    ]


def test_every_word_of_opencc_is_converted_as_opencc_does(device: Device) -> None:
    words = list(simplified_words())
    assert len(words) > 4500 and max(map(len, words)) > 8
    han = [
        "，".join(map(chr, range(start, start + 64)))
        for start in range(0x3400, 0x32400, 64)
        if start & ~0x7FF != 0xD800
    ]
    assert_equal_to_plain_python(device, [*words, *(word + word for word in words), *han, *random_words(3000)])


def test_opencc_has_no_other_compatibility_ideographs(device: Device) -> None:
    forms = read_dictionary(package_file("opencc", f"{FOLDER}/CJK_Compatibility_Ideographs.ocd2"))
    assert forms.items() <= unified_forms().items()


def test_phrases_can_change_their_length(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"軟體": "软件包", "部落格": "博客", "體": "体", "𠮷野": "吉", "乾": "干", "乾坤": "乾坤"}
    monkeypatch.setattr(simplified, "simplified_words", lambda: words)
    monkeypatch.setattr(characters, "_make_classes", lambda: cleaning_tables().classes & ~np.uint16(CONVERTED))
    tables = Tables(**characters._make_cleaning_tables())
    texts = ["軟體" * 50, "軟體部落格的軟體", "部落格部落", "𠮷野家", "乾坤乾", "體體軟"]
    expected = ["软件包" * 50, "软件包博客的软件包", "博客部落", "吉家", "乾坤干", "体体軟"]
    assert cleaned(device, texts, tables) == expected
    words["軟"] = "软件"
    with pytest.raises(DanqingError, match="软件 is too long for 軟"):
        characters._make_cleaning_tables()


def test_dictionaries_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "TSPhrases.ocd2"
    broken.write_bytes(b"no dictionary")
    with pytest.raises(DanqingError, match=r"opencc_dict: cannot read TSPhrases\.ocd2: .*install OpenCC"):
        read_dictionary(broken)


def test_compatibility_ideographs_become_those_of_nfkc(device: Device) -> None:
    blocks = (0x2F00, 0x2FD6), (0xF900, 0xFB00), (0x2F800, 0x2FA20)
    characters = [chr(code) for block in blocks for code in range(*block)]
    texts = ["前" + c + "a" + c for c in characters] + ["".join(characters), "".join(reversed(characters))]
    assert normalized(device, texts) == [unicodedata.normalize("NFKC", text) for text in texts]


def test_radicals_become_ideographs_and_other_texts_stay(device: Device) -> None:
    assert normalized(device, ["⻓⻢⻚⻛⿔", "", "⺇\ufacf"]) == ["长马页风龜", "", "𠘨\U0002284a"]
    texts = [text.replace("&", "") for text in random_texts(300, seed=3)] + ["ＡＢＣ，“”…①ﬁ℃"]
    rows = Strings.of(texts)
    assert np.shares_memory(normalize(device, rows, cleaning_tables()).data, rows.data)


def test_every_emoji_of_unicode_is_removed(device: Device) -> None:
    emoji = pytest.importorskip("emoji")
    sequences = [text for text, entry in emoji.EMOJI_DATA.items() if entry["status"] == emoji.STATUS["fully_qualified"]]
    assert len(sequences) > 3500
    texts = cleaned(device, [f"前{sequence}后" for sequence in sequences])
    assert not {sequence: text for sequence, text in zip(sequences, texts, strict=True) if text != "前后"}


def test_cleaning_is_linear_and_safe_on_hostile_text(device: Device) -> None:
    hostile = ["好" * 400_000, "😀" * 10_000, "e" + "\u0301" * 100_000, "\u202e" * 1000 + "字", "哈 " * 200_000]
    assert list(map(len, cleaned(device, hostile))) == [400_000, 0, 100_001, 1, 399_999]
    markup = ["<a " + "a=b " * 100_000, "<" * 400_000, "<script>" * 50_000, "<!--" * 100_000, "&amp;" * 80_000]
    markup += ["<a" + " " * 400_000, "<p a=" * 80_000, '<b a="' * 80_000, "&" * 400_000, "<script " * 50_000]
    markup += ["&#" + "1" * 400_000, "&#x" * 100_000, "&CounterClockwise" * 20_000]
    assert normalized(device, markup[:-3]) == list(map(plain.normalize, markup[:-3]))
    assert list(map(len, normalized(device, markup[-3:]))) == [1, 300_000, 340_000]


def test_rows_of_a_slice_and_bytes_that_are_not_utf8(device: Device) -> None:
    array = pa.array(["甲&amp;", "<b>漢</b>字", "", "⼤&", "丁"], pa.string()).slice(1, 3)
    assert cleaned(device, array) == ["汉字", "", "大&"]
    assert normalized(device, array) == ["漢字", "", "大&"]
    rows = Strings.of(pa.array(["一".encode(), b"\xff\xe4\xb8<b>", "<b>漢".encode()], pa.large_binary()))
    assert clean(device, rows, cleaning_tables()).text.arrow().to_pylist() == ["一", "", "汉"]
    assert normalize(device, rows, cleaning_tables()).arrow().to_pylist() == ["一", "\ufffd" * 3, "漢"]
