"""Encodings that are detected, and JSON of any shape."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from danqing.engine.core.carried import MAX_DEPTH
from danqing.engine.core.errors import DanqingError
from danqing.engine.sources.text import Decoder, SampleError, check_encoding, detect, parse_object

SIMPLIFIED = ["一只猫", "公园的草地上有一只可爱的小猫", "iPhone 15 手机壳，全新正品", "上海夜景"]
OTHERS = ["10 µm, café, naïve façade", "привет, мир", "Ελληνικά", "© 2024 Ångström", "caf\ufffd", "Qua\u0302\u0300n"]
MIXED = ["Ø30×Ø20 mm", "[tɕʰiɛn]", "/ˈɛŋɡlɪʃ/", "Ω×λ", "٢٠٢٤م", "ĉ÷é"]
TRADITIONAL = ["一隻貓", "公園的草地上有一隻可愛的小貓", "iPhone 15 手機殼，全新正品", "上海夜景"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((text, encoding) for text in SIMPLIFIED + TRADITIONAL for encoding in ("utf-8", "gb18030", "utf-16")),
        *((text, "big5") for text in TRADITIONAL),
        ("plain", "utf-8"),
        ("", "utf-8"),
        *((text, "utf-8") for text in OTHERS + MIXED),
        ("猫", "utf-8-sig"),
    ],
)
def test_texts_are_read_in_their_encoding(text: str, encoding: str) -> None:
    decoder = Decoder()
    assert decoder(text.encode(encoding)) == text
    assert dict(+decoder.counts) == ({} if encoding.startswith("utf-8") else {encoding: 1})


def test_a_caption_that_is_cut_inside_a_character_stays_utf8() -> None:
    data = "公园的草地上有一只可爱的小猫".encode()
    for cut in range(3, len(data)):
        text = Decoder()(data[:cut])
        assert text.removesuffix("\ufffd") == data[:cut].decode("utf-8", "ignore")


def test_what_is_in_no_encoding_is_an_error_in_words() -> None:
    assert detect(b"\xff\xff\x00") is None
    with pytest.raises(SampleError, match="UTF-8, UTF-16, GB18030, Big5; name another with --encoding"):
        Decoder()(b"\xff\xff\x00")
    with pytest.raises(SampleError, match="cannot be read as big5"):
        Decoder("big5")(b"\xff\xff\x00")
    assert Decoder("cp1252")(b"caf\xe9") == "café"


def test_random_bytes_raise_nothing_else() -> None:
    chance = random.Random(0)
    for _ in range(2000):
        data = bytes(chance.choices((0, 10, 65, 0x80, 0xB0, 0xC4, 0xE4, 0xFE, 0xFF), k=chance.randrange(9)))
        with suppress(SampleError):
            Decoder()(data).encode()


@pytest.mark.parametrize("name", ["nonsense", "rot13", "base64", "a\0b"])
def test_unknown_encodings_are_refused(name: str) -> None:
    with pytest.raises(DanqingError, match="no such encoding"):
        check_encoding(name)


def test_json_of_any_shape_becomes_values_that_can_be_stored() -> None:
    text = r'{"n": NaN, "i": [-Infinity, 1e999], "\ud800": "\ud83d", "ok": "\ud83d\ude00", "big": 12345678901234567890}'
    found = parse_object(text)
    assert found["n"] is None and found["i"][0] is None and found["big"] == 12345678901234567890
    assert found["\ufffd"] == "\ufffd" and found["ok"] == "😀"
    assert parse_object('{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH)
    for deep in ('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), '{"a":' + "[" * 500 + "]" * 500 + "}"):
        with pytest.raises(SampleError, match="nested in more than 32 levels"):
            parse_object(deep)
    for broken in ("{", "[" * 10**5, "1" * 5000, '{"a": 1' + "0" * 5000 + "}", "[1]", "null"):
        with pytest.raises(SampleError, match=r"not valid JSON|, not an object"):
            parse_object(broken)
