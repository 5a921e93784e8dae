"""Captions to token ids, as the text model's own tokenizer does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.kernels.text.strings import Strings
from danqing.kernels.text.wordpiece import build_tables, lower_case, token_ids
from danqing.trt_models.card import TokenInput


class Tokenizer:
    """SentencePiece with the card's begin and end tokens."""

    def __init__(self, card: TokenInput, model: Path) -> None:
        self.card = card
        self.unknown = 0 if card.unknown is None else card.unknown
        self._nothing = [] if card.fixed_length else [self.unknown]  # a fixed length has its end token and padding
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """int32 ids a text, at most `max_length` (the end token stays)."""
        begin = [] if self.card.begin is None else [self.card.begin]
        end = [] if self.card.end is None else [self.card.end]
        room = self.card.max_length - len(begin) - len(end)
        if self.card.lower_case:
            texts = [lower_case(text) for text in texts]
        return [
            np.array([*begin, *(ids or self._nothing)[:room], *end], np.int32) for ids in self._processor.encode(texts)
        ]

    def pad(self, ids: list[np.ndarray]) -> np.ndarray:
        """int32 (texts, longest or `max_length`): one rectangle for the model, filled up with the card's pad id."""
        return _rectangle(ids, -1 if self.card.pad is None else self.card.pad, self.card)


class WordPiece:
    """WordPiece of a lower-case BERT vocabulary (vocab.txt: a piece a line, in the order of their ids)."""

    def __init__(self, card: TokenInput, vocabulary: Path) -> None:
        if card.max_length < 2:
            raise DanqingError(f"token_input: max_length {card.max_length} has no room for [CLS] and [SEP]")
        pieces = [line.rstrip() for line in vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
        ids = {piece: index for index, piece in enumerate(pieces)}

        def special(given: int | None, piece: str) -> int:
            if given is None and piece not in ids:
                raise DanqingError(f"{vocabulary}: no line {piece}, and the card's token_input gives no id for it")
            return ids[piece] if given is None else given

        self.card = card
        self.unknown, self._pad = special(card.unknown, "[UNK]"), special(card.pad, "[PAD]")
        begin, end = special(card.begin, "[CLS]"), special(card.end, "[SEP]")
        self.tables = build_tables(pieces, (begin, end, self._pad, self.unknown))

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """int32 ids a text, at most `max_length` (the end token stays)."""
        rows = Strings.of(texts)
        ids, lengths, _ = token_ids(_ThisThread(), self.tables, rows.offsets, rows.data, self.card.max_length)
        return [row[:length] for row, length in zip(ids, lengths, strict=True)]

    def pad(self, ids: list[np.ndarray]) -> np.ndarray:
        """int32 (texts, longest): one rectangle for the model, the rest filled with [PAD]."""
        return _rectangle(ids, self._pad, self.card)


AnyTokenizer = Tokenizer | WordPiece
_KINDS: dict[str, type[Tokenizer] | type[WordPiece]] = {"sentencepiece": Tokenizer, "wordpiece": WordPiece}


def open_tokenizer(card: TokenInput, path: Path) -> AnyTokenizer:
    """The tokenizer of the card's kind, from its model or vocabulary."""
    if card.kind not in _KINDS:
        raise DanqingError(f"token_input: no kind {card.kind!r}; {did_you_mean(card.kind, _KINDS)}")
    return _KINDS[card.kind](card, path)


def _rectangle(ids: list[np.ndarray], pad: int, card: TokenInput) -> np.ndarray:
    longest = card.max_length if card.fixed_length else max(map(len, ids), default=1)
    out = np.full((len(ids), longest), pad, np.int32)
    for row, tokens in enumerate(ids):
        out[row, : len(tokens)] = tokens
    return out


class _ThisThread:
    """Where a batch is tokenized: the stage has a thread of its own already."""

    kind, threads = "cpu", 1

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        return [function(item) for item in items]
