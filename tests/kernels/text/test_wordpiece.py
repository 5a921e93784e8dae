"""WordPiece tokens, compared with the `tokenizers` library."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.strings import Strings
from danqing.engine.core.text_column import TextColumn
from danqing.kernels.text.utf8 import decode_one
from danqing.kernels.text.wordpiece import (
    CODE_MASK,
    CODE_SHIFT,
    DROP,
    ISOLATED,
    KEEP,
    KIND_MASK,
    MAX_WORD_CHARACTERS,
    SEVERAL,
    SPACE,
    WordPieceTables,
    build_tables,
    token_ids,
    tokenize,
)
from danqing.trt_models.card import TokenInput
from danqing.trt_models.run.tokenizer import WordPiece, open_tokenizer

tokenizers = pytest.importorskip("tokenizers")

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP = 0, 1, 2, 3
# Scripts with different rules of normalisation: Latin, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, Jamo,
# Balinese, Greek with accents, punctuation, kana, fullwidth, musical signs (kept marks of several classes), emoji,
# flags.
SCRIPTS = (
    *((0x0, 0x250), (0x300, 0x5FF), (0x600, 0x6FF), (0x8D0, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1B00, 0x1BFF)),
    *((0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2E00, 0x2E7F), (0x3000, 0x30FF), (0xA940, 0xA9DF), (0xFE00, 0xFFFF)),
    *((0x11400, 0x1147F), (0x1D100, 0x1D1FF), (0x1F300, 0x1F64F), (0xE0000, 0xE007F)),
)
DIFFICULT_TEXTS = (
    *("", " ", "\t\r\n", "\0", "一只黑色的猫", "Café Zoë naïve ÅNGSTRÖM", "ＡＢＣ１２３，。！", "İstanbul ΣΊΣΥΦΟΣ ẞ ß"),
    *("price: $3.99/kg (50% off)!!!", "[CLS] [SEP] [UNK] [PAD] ##ing # ##", "iPhone15Pro新款手机壳", "ﬁne ½ № ㎏ ①"),
    *("👩‍👩‍👧‍👦👨🏽‍🚀🇨🇳❤️", "สวัสดีครับ ภาษาไทย", "안녕하세요 한국어 텍스트", "नमस्ते क्षि", "שָׁלוֹם مَرْحَبًا", "がぎぐ が ｶﾞ ヴ"),
    *("a\u0000b\u0007c\u200bd\u00ade\ufefff\ufffdg", "\u202eevil\u202c \u2066x\u2069", "e\u0301\u0323o\u0323\u0301"),
    *("a\u302e\u1baab", "a\u302e\u0941\u1baab", "a\u302e\u200d\u1baab", "\U0001d15e\U0001d16d\U0001d165", "\u0344"),
    *("豈\ufa0e\U0002f800\U0002b825", "x\u2028y\u2029z\u3000w\xa0v", "≠ ≮ \u037e \u1fef \u0387", "\U000e0041\ue000"),
    *(
        "a" * MAX_WORD_CHARACTERS,
        "a" * (MAX_WORD_CHARACTERS + 1),
        "é" * MAX_WORD_CHARACTERS,
        "你" * 200,
        "ab " * 200,
        "." * 200,
        "word" * 26,
    ),
)


def vocabulary() -> list[str]:
    """Makes pieces of Han, of single characters of most scripts (some only within words) and of ASCII syllables."""
    draw = random.Random(1)
    pieces = list(SPECIAL)
    for code in (*range(0x21, 0x3100), *range(0x3400, 0x3600), *range(0x4E00, 0xA000), *range(0xA900, 0xAC00)):
        if code % 7:
            pieces.append(chr(code))
        if code % 5 and not 0x3400 <= code < 0xA000:
            pieces.append("##" + chr(code))
    pieces += [mark + chr(code) for code in range(0x1D100, 0x1F650) if code % 9 for mark in ("", "##")]
    syllables = ["".join(draw.choices("abeiost", k=draw.randrange(2, 6))) for _ in range(1200)]
    pieces += [mark + syllable for syllable in syllables for mark in ("", "##")]
    return list(dict.fromkeys(pieces))


@pytest.fixture(scope="module")
def tables() -> WordPieceTables:
    return build_tables(vocabulary(), (CLS, SEP, PAD, UNK))


@pytest.fixture(scope="module")
def library() -> tokenizers.Tokenizer:
    """The library's normaliser, pre-tokenizer and model, without its search for special tokens in the text."""
    ids = {piece: index for index, piece in enumerate(vocabulary())}
    built = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARACTERS)
    )
    built.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
    )
    built.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return built


def rows_of(texts: list[bytes]) -> Strings:
    return Strings.of(pa.array(texts, pa.large_binary()))


def token_lists(device: Device, tables: WordPieceTables, texts: list[bytes], max_length: int = 52) -> list[list[int]]:
    """Returns the tokens between [CLS] and [SEP], and checks the rest of the output."""
    ids, lengths, unknown = token_ids(device, tables, rows_of(texts), max_length)
    assert ids.shape == (len(texts), max_length) and ids.dtype == lengths.dtype == unknown.dtype == np.int32
    out = []
    for row, length, missed in zip(ids.tolist(), lengths.tolist(), unknown.tolist(), strict=True):
        assert row[0] == CLS and row[length - 1] == SEP and set(row[length:]) <= {PAD}
        assert missed == row.count(UNK)
        out.append(row[1 : length - 1])
    return out


def library_token_lists(library: tokenizers.Tokenizer, texts: list[str], max_length: int = 52) -> list[list[int]]:
    return [encoding.ids[: max_length - 2] for encoding in library.encode_batch(texts)]


def test_every_code_point_is_normalised_and_split_as_the_library_does(
    tables: WordPieceTables, library: tokenizers.Tokenizer
) -> None:
    shown = {DROP: "", SPACE: " ", ISOLATED: " {} ", KEEP: "{}"}

    def normalised(code: int) -> str:
        entries = [int(tables.characters[code])]
        if entries[0] & KIND_MASK == SEVERAL:
            run = tables.sequences[entries[0] >> CODE_SHIFT :][:8].tolist()
            entries = run[: run.index(DROP)]
        return "".join(
            shown.get(entry & KIND_MASK, "").format(chr(entry >> CODE_SHIFT & CODE_MASK)) for entry in entries
        )

    for start in range(0, 0x110000, 0x100):
        codes = [code for code in range(start, start + 0x100) if not 0xD800 <= code < 0xE000]
        text = library.normalizer.normalize_str("\n".join(map(chr, codes)))
        expected = [word for word, _ in library.pre_tokenizer.pre_tokenize_str(text)]
        assert [word for word in " ".join(map(normalised, codes)).split(" ") if word] == expected, hex(start)


@pytest.mark.parametrize("max_length", [2, 3, 52, 400])
def test_difficult_texts(
    device: Device, tables: WordPieceTables, library: tokenizers.Tokenizer, max_length: int
) -> None:
    assert token_lists(device, tables, [text.encode() for text in DIFFICULT_TEXTS], max_length) == library_token_lists(
        library, [*DIFFICULT_TEXTS], max_length
    )


@pytest.mark.parametrize("seed", range(4))
def test_random_texts(device: Device, tables: WordPieceTables, library: tokenizers.Tokenizer, seed: int) -> None:
    draw = random.Random(seed)

    def character(scripts: list[tuple[int, int]]) -> str:
        choice = draw.random()
        if choice < 0.1:
            code = draw.randrange(0x110000 - 0x800)
            return chr(code + 0x800 * (code >= 0xD800))
        if choice < 0.4:
            return draw.choice(" abeiost的一\u302e\u1baa\u0323")
        return chr(draw.randint(*draw.choice(scripts)))

    texts = []
    for _ in range(2000):
        scripts = draw.choices(SCRIPTS, k=3)
        texts.append("".join(character(scripts) for _ in range(draw.randrange(60))))
    assert token_lists(device, tables, [text.encode() for text in texts]) == library_token_lists(library, texts)


def test_bytes_that_are_not_utf8_are_dropped(
    device: Device, tables: WordPieceTables, library: tokenizers.Tokenizer
) -> None:
    draw = random.Random(0)
    parts = [b"\x80", b"\xc0\x80", b"\xe0\x81\xa1", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8", b"\xff", b"\xc3"]
    parts += [b"\xe4\xb8", b"\xf0\x9f\x98", b"\xf0\x80\x81\xa1", b"a", b"t", b" ", *map(str.encode, "é的😀")]
    texts = [b"".join(draw.choices(parts, k=draw.randrange(12))) for _ in range(2000)]
    texts += [bytes([byte]) for byte in range(256)]
    assert decode_one(np.frombuffer(b"\xf4\x90\x80\x80", np.uint8), 0, 4) == (0xFFFD, 1)  # beyond the character table
    decoded = [text.decode("utf-8", "replace") for text in texts]
    assert token_lists(device, tables, texts) == library_token_lists(library, decoded)


def test_hostile_texts_take_linear_time(device: Device, tables: WordPieceTables, library: tokenizers.Tokenizer) -> None:
    marks = "\u302e" * 90 + "\u1baa" * 9
    token_lists(device, tables, [b""])  # compiles the kernel
    seconds = []
    for n in (12_500, 100_000):
        texts = ["a" * 10 * n, "😀" * (n // 10), "a" + "\u0301" * n, "\u302e" * n + "\u1baa" * n]
        texts += [
            (marks + " ") * (n // 100),
            "\u200d" * 10 * n,
            " " * 10 * n,
            "，" * n,
            "ab" * 49 + "\U0010ffff",
            "각" * n,
        ]
        started = time.process_time()  # of this process only: other processes do not count
        found = token_lists(device, tables, [text.encode() for text in texts], 10_100)
        seconds.append(time.process_time() - started)
    assert found == library_token_lists(library, texts, 10_100)
    assert seconds[1] < 32 * seconds[0]  # 8 times the length; 64 times the time if it were quadratic


def test_results_do_not_depend_on_threads_or_strides(device: Device, tables: WordPieceTables) -> None:
    texts = [text.encode() for text in DIFFICULT_TEXTS] * 40
    assert token_lists(device, tables, texts) == token_lists(device, tables, texts[: len(DIFFICULT_TEXTS)]) * 40
    assert token_lists(device, tables, []) == []

    once, rows, stride = token_ids(device, tables, rows_of(texts), 52), len(texts), 7
    outputs = [np.full_like(output, -9) for output in once]
    scratch = np.full((rows, MAX_WORD_CHARACTERS), -9, np.int32)
    for thread in range(stride):  # as seven CUDA threads
        tokenize._on_cpu(thread, rows, stride, *rows_of(texts)[:2], *tables, scratch, *outputs)
    assert all(np.array_equal(one, other) for one, other in zip(once, outputs, strict=True))


def card(**values: int) -> TokenInput:
    return TokenInput("wordpiece", "vocab.txt", **({"max_length": 6} | values))  # type: ignore[arg-type]


def test_the_tokenizer_of_a_card(tmp_path: Path, device: Device) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, "猫", "cat", "##s", ""]), encoding="utf-8")
    opened = open_tokenizer(card(), path)
    assert isinstance(opened, WordPiece)
    ids, lengths, unknown = opened.encode(TextColumn.of(["Cats 猫", "", "猫" * 9, "\ud800dog"]), device)
    assert ids.tolist() == [[2, 6, 7, 5, 3, 0], [2, 3, 0, 0, 0, 0], [2, 5, 5, 5, 5, 3], [2, 1, 3, 0, 0, 0]]
    assert lengths.tolist() == [5, 2, 6, 3] and unknown.tolist() == [0, 0, 0, 1]
    assert ids.dtype == lengths.dtype == unknown.dtype == np.int32
    with_ids = open_tokenizer(card(begin=11, end=12, pad=13, unknown=14), path)
    found = with_ids.encode(TextColumn.of(["dog cat", ""]), device)
    assert found.ids[:, :4].tolist() == [[11, 14, 6, 12], [11, 12, 13, 13]] and found.unknown.tolist() == [1, 0]


def test_a_card_that_does_not_fit_its_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[UNK]\n[CLS]\n[PAD]\n", encoding="utf-8")
    with pytest.raises(DanqingError, match=r"no line \[SEP\]"):
        open_tokenizer(card(), path)
    with pytest.raises(DanqingError, match="max_length 1"):
        open_tokenizer(card(max_length=1), path)
    with pytest.raises(DanqingError, match="did you mean 'wordpiece'"):
        open_tokenizer(TokenInput("wordpieces", "vocab.txt"), path)  # type: ignore[arg-type]
