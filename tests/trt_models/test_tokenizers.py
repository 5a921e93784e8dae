"""Tokenizers of the published cards, compared with the classes of transformers on the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import BertTokenizer, Siglip2Tokenizer
from transformers.convert_slow_tokenizer import SentencePieceExtractor

from danqing.engine.core.device import Device
from danqing.engine.core.text_column import TextColumn
from danqing.trt_models.card import card_names, load_card
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.run.known_characters import known_characters
from danqing.trt_models.run.tokenizer import SentencePiece, open_tokenizer
from tests.kernels.text.texts import DIFFICULT_TEXTS, random_markup, random_texts

TEXTS = [
    *DIFFICULT_TEXTS, *random_texts(3000, 7),
    "A Picture Of Zürich, HELLO WORLD", "ΟΔΟΣ Σίσυφος", "İSTANBUL Ǆ ẞ", "<eos> 的 <pad> [CLS]", "  two  spaces  ",
    "the quick brown fox " * 30, "\n\n\t换行\n", "👨‍👩‍👧‍👦🏳️‍🌈🇨🇳", "\u2581meta\u2581 space", "Ⅷ ℃ ㍿ ﷺ",
]  # fmt: skip
TRAINING = [text.replace("\0", "") for text in (*DIFFICULT_TEXTS, *random_texts(3000, 1))] + [
    "the quick brown fox " * 30
] * 20


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece model trained with the options of Gemma's, which SigLIP 2 uses."""
    path = tmp_path_factory.mktemp("gemma") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING), model_prefix=str(path), model_type="bpe", vocab_size=9000,
        character_coverage=0.98, byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        user_defined_symbols=["<mask>", "\n", "\n\n"], minloglevel=2,
    )  # fmt: skip
    return path.with_suffix(".model")


def tokenize(name: str, file: Path, device: Device) -> list[list[int]]:
    card = load_card(name).token_input
    assert card is not None
    ids, lengths, unknown = open_tokenizer(card, file).encode(TextColumn.of(TEXTS), device)
    rows: list[list[int]] = ids[:, : lengths.max()].tolist()
    assert unknown.tolist() == [row.count(card.unknown or 1) for row in rows]
    return rows


def differing(found: list[list[int]], expected: Any) -> list[str]:
    return [text for text, a, b in zip(TEXTS, found, expected, strict=True) if list(a) != list(b)]


def distinct(family: str) -> list[str]:
    """Returns one text card of the family for each different tokenizer."""
    names = [name for name in card_names() if name.startswith(family) and name.endswith("text")]
    assert len(names) >= 3
    return list({load_card(name).token_input: name for name in names}.values())


@pytest.mark.parametrize("name", distinct("siglip2"))
def test_siglip2(gemma: Path, name: str, device: Device) -> None:
    extracted = SentencePieceExtractor(str(gemma)).extract(None)
    tokenizer = Siglip2Tokenizer(
        vocab=extracted["vocab"], merges=extracted["merges"], add_bos_token=False, add_eos_token=True,
        padding_side="right", split_special_tokens=True,  # the text "<eos>" is not a special token
    )  # fmt: skip
    expected = tokenizer(TEXTS, padding="max_length", max_length=64, truncation=True)["input_ids"]
    found = [row + [0] * (64 - len(row)) for row in tokenize(name, gemma, device)]
    assert {len(row) for row in found} == {64} and differing(found, expected) == []
    assert found[TEXTS.index("")] == [1] + [0] * 63


@pytest.mark.parametrize("name", distinct("chinese-clip"))
def test_chinese_clip(tmp_path: Path, name: str, device: Device) -> None:
    characters = sorted({character for text in TRAINING for character in text.lower() if character.strip()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters[::2], *(f"##{c}" for c in characters[::3])]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"), split_special_tokens=True)
    expected = tokenizer(TEXTS, padding="longest", max_length=52, truncation=True)["input_ids"]
    assert differing(tokenize(name, tmp_path / "vocab.txt", device), expected) == []


def test_unknown_tokens_are_counted_without_tokenizing_every_text(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = ModelSet({"text_embedding": "use-multilingual"}).tokenizer("text_embedding")
    assert isinstance(tokenizer, SentencePiece)
    others = "\u0301", "\u3099", "ﾟ", "ﾊ", "か", "e", "각", "\u09be", "\u09c7", "ﬁ", "A", "𠮷", "\x00"
    parts = [*map(chr, range(0x1100, 0x1180)), *others]
    pairs = [left + right for left in parts for right in parts[100:]]
    texts = [*DIFFICULT_TEXTS, "   ", *random_texts(1500), *random_markup(1500), *pairs, "小猫" * 300 + "𠮷" * 9]
    column, tokenized = TextColumn.of([*texts, None]), list[int]()
    expected = tokenizer.encode(column, device).unknown
    real = SentencePiece.encode
    monkeypatch.setattr(
        SentencePiece, "encode", lambda self, some, device: tokenized.append(len(some)) or real(self, some, device)
    )
    assert tokenizer.count_unknown(column, device).tolist() == expected.tolist() and {*expected.tolist()} > {0, 1, 2}
    known = known_characters(tokenizer._processor)
    assert known[[*map(ord, "猫か각eﾊ")]].all() and not known[[*map(ord, "𠮷\u0301\uff9eﾟㄱㅏ")]].any()
    plain = TextColumn.of(["公园里有一只可爱的小猫", "iPhone 15 Pro，256GB！", "これは日本語のテキストです", "café"])
    assert tokenizer.count_unknown(plain, device).tolist() == [0] * 4
    assert tokenized[1] == 0 and 0 < tokenized[0] < len(texts)
