"""Converts captions to token ids, equal to those of the text model's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.strings import Strings
from danqing.kernels.text.wordpiece import build_tables, lower_case, token_ids
from danqing.trt_models.card import TokenInput

MIN_WIDTH = 8
"""Tokens of the narrowest batch of texts. Half of the captions of a crawl have no more (USE's SentencePiece)."""


class SentencePiece:
    """SentencePiece with the card's begin and end tokens.

    Args:
        card: the tokenizer's section of a model card.
        model: the SentencePiece model.
    """

    def __init__(self, card: TokenInput, model: Path) -> None:
        self.card = card
        self.unknown = 0 if card.unknown is None else card.unknown
        # A network must get at least one token; a text of fixed length always has its padding.
        self._empty_text = [] if card.fixed_length else [self.unknown]
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Converts each text to int32 (tokens,), at most `max_length`; a cut text keeps its end token."""
        begin = [] if self.card.begin is None else [self.card.begin]
        end = [] if self.card.end is None else [self.card.end]
        max_ids = self.card.max_length - len(begin) - len(end)
        if self.card.lower_case:
            texts = [lower_case(text) for text in texts]
        return [
            np.array([*begin, *(ids or self._empty_text)[:max_ids], *end], np.int32)
            for ids in self._processor.encode(texts)
        ]

    def pad(self, ids: list[np.ndarray], width: int | None = None) -> np.ndarray:
        """Makes one array of texts: int32 (texts, width), padded with the card's pad id; for None see `_padded`."""
        return _padded(ids, -1 if self.card.pad is None else self.card.pad, self.card, width)


class WordPiece:
    """WordPiece with a lower-case BERT vocabulary.

    Args:
        card: the tokenizer's section of a model card.
        vocabulary: vocab.txt, one piece per line in the order of their ids.

    Raises:
        DanqingError: `max_length` is below 2, or neither the vocabulary nor the card has the id of a special token.
    """

    def __init__(self, card: TokenInput, vocabulary: Path) -> None:
        if card.max_length < 2:
            raise DanqingError(f"token_input: max_length {card.max_length} is too short for [CLS] and [SEP]")
        pieces = [line.rstrip() for line in vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
        ids = {piece: index for index, piece in enumerate(pieces)}

        def special(card_id: int | None, piece: str) -> int:
            if card_id is None and piece not in ids:
                raise DanqingError(f"{vocabulary}: no line {piece}, and the card's token_input gives no id for it")
            return ids[piece] if card_id is None else card_id

        self.card = card
        self.unknown, self._pad = special(card.unknown, "[UNK]"), special(card.pad, "[PAD]")
        begin, end = special(card.begin, "[CLS]"), special(card.end, "[SEP]")
        self.tables = build_tables(pieces, (begin, end, self._pad, self.unknown))

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Converts each text to int32 (tokens,), at most `max_length`; a cut text keeps its end token."""
        rows = Strings.of(texts)
        ids, lengths, _ = token_ids(_CallingThread(), self.tables, rows.offsets, rows.data, self.card.max_length)
        return [row[:length] for row, length in zip(ids, lengths, strict=True)]

    def pad(self, ids: list[np.ndarray], width: int | None = None) -> np.ndarray:
        """Makes one array of texts: int32 (texts, width), padded with [PAD]; for None see `_padded`."""
        return _padded(ids, self._pad, self.card, width)


AnyTokenizer = SentencePiece | WordPiece
_KINDS: dict[str, type[SentencePiece] | type[WordPiece]] = {"sentencepiece": SentencePiece, "wordpiece": WordPiece}


def open_tokenizer(card: TokenInput, path: Path) -> AnyTokenizer:
    """Opens a tokenizer of the card's kind.

    Args:
        card: the tokenizer's section of a model card.
        path: its SentencePiece model or its vocabulary.

    Raises:
        DanqingError: an unknown kind, or as `WordPiece`.
    """
    if card.kind not in _KINDS:
        raise DanqingError(f"token_input: no kind {card.kind!r}; {did_you_mean(card.kind, _KINDS)}")
    return _KINDS[card.kind](card, path)


def widths(ids: list[np.ndarray], card: TokenInput) -> np.ndarray:
    """Returns the width that each text is padded to: int64 (texts,), a power of two from `MIN_WIDTH`, or `max_length`.

    It depends on the text alone: a network's output can change in the last bit with the width of its input.
    """
    if card.fixed_length:
        return np.full(len(ids), card.max_length)
    return np.array([min(1 << (max(len(row), MIN_WIDTH) - 1).bit_length(), card.max_length) for row in ids], np.int64)


def _padded(ids: list[np.ndarray], pad: int, card: TokenInput, width: int | None) -> np.ndarray:
    """Pads texts to a width; None: to the longest, or to `max_length` where the card fixes the length."""
    if width is None:
        width = card.max_length if card.fixed_length else max(map(len, ids), default=1)
    out = np.full((len(ids), width), pad, np.int32)
    for row, tokens in enumerate(ids):
        out[row, : len(tokens)] = tokens
    return out


class _CallingThread:
    """A launcher that runs kernels on the calling thread: the stage that tokenizes has its own thread."""

    kind, threads = "cpu", 1

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        return [function(item) for item in items]
