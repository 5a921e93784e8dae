"""Captions to token ids, as the text model's own tokenizer does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import sentencepiece

from trt_models.card import TokenInput


class Tokenizer:
    """SentencePiece with the card's begin and end tokens."""

    def __init__(self, card: TokenInput, model: Path) -> None:
        self.card = card
        self.unknown = card.unknown
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """int32 ids a text, at most `max_length` (the end token stays)."""
        begin = [] if self.card.begin is None else [self.card.begin]
        end = [] if self.card.end is None else [self.card.end]
        room = self.card.max_length - len(begin) - len(end)
        return [
            np.array([*begin, *(ids or [self.card.unknown])[:room], *end], np.int32)
            for ids in self._processor.encode(texts)
        ]

    def pad(self, ids: list[np.ndarray]) -> np.ndarray:
        """int32 (texts, longest): one rectangle for the model, the rest filled with the card's pad id."""
        out = np.full((len(ids), max(map(len, ids), default=1)), self.card.pad, np.int32)
        for row, tokens in enumerate(ids):
            out[row, : len(tokens)] = tokens
        return out
