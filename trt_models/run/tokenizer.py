"""Converts captions to token ids, equal to those of the text model's own tokenizer."""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import sentencepiece

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.strings import Strings
from danqing.engine.core.text_column import TextColumn
from danqing.kernels.portable import resident
from danqing.kernels.text.utf8 import find_unknown
from danqing.kernels.text.wordpiece import build_tables, lower_case, token_ids
from danqing.trt_models.card import TokenInput
from danqing.trt_models.run.known_characters import known_characters

MIN_WIDTH = 8
"""Tokens of the narrowest batch of texts. Half of the captions of a crawl have no more (USE's SentencePiece)."""


class TokenRows(NamedTuple):
    """Tokens of texts.

    Attributes:
        ids: int32 (texts, max_length), padded; on the device if a kernel made them, else on the host.
        lengths: int32 (texts,), tokens before the padding, on the host.
        unknown: int32 (texts,), [UNK] among them, on the host.
    """

    ids: Any
    lengths: np.ndarray
    unknown: np.ndarray


class SentencePiece:
    """SentencePiece with the card's begin and end tokens.

    Args:
        card: the tokenizer's section of a model card.
        model: the SentencePiece model.

    Raises:
        DanqingError: the model is missing or damaged.
    """

    def __init__(self, card: TokenInput, model: Path) -> None:
        self.card = card
        self._unknown = 0 if card.unknown is None else card.unknown
        self._pad = -1 if card.pad is None else card.pad
        # A network must get at least one token; a text of fixed length always has its padding.
        self._empty_text = [] if card.fixed_length else [self._unknown]
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (OSError, RuntimeError):
            raise DanqingError(f"{model}: is damaged, or no SentencePiece model; get the file again") from None

    def encode(self, texts: TextColumn, device: Device) -> TokenRows:
        """Converts each text to at most `max_length` tokens; a cut text keeps its end token.

        Args:
            texts: the texts; those on a device are copied to the host.
            device: its host threads tokenize.
        """
        begin = [] if self.card.begin is None else [self.card.begin]
        end = [] if self.card.end is None else [self.card.end]
        max_ids = self.card.max_length - len(begin) - len(end)
        lines = utf8_rows(texts)
        if self.card.lower_case:
            lines = _lower_case(lines)
        rows = [
            [*begin, *(ids or self._empty_text)[:max_ids], *end]
            for ids in self._processor.encode(lines, num_threads=device.threads)
        ]
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        inside = np.arange(self.card.max_length) < lengths[:, None]
        ids = np.full(inside.shape, self._pad, np.int32)
        ids[inside] = np.fromiter(chain.from_iterable(rows), np.int32, lengths.sum())
        return TokenRows(ids, lengths, ((ids == self._unknown) & inside).sum(1, dtype=np.int32))

    def count_unknown(self, texts: TextColumn, device: Device) -> np.ndarray:
        """Counts [UNK] as `encode` does: int32 (texts,), on the host. Tokenizes only the texts that can have [UNK]."""
        rows = texts.strings(device).of_one_type()
        found = device.xp.empty(rows.rows, np.bool_)
        find_unknown.launch(device, rows.rows, rows, resident(device, self._known), found)
        doubtful = np.flatnonzero(device.down(found))
        counts = np.zeros(len(texts), np.int32)
        counts[doubtful] = self.encode(texts.take(doubtful), device).unknown
        return counts

    @cached_property
    def _known(self) -> np.ndarray:
        known = known_characters(self._processor)
        if self.card.lower_case:
            known[[code for code in np.flatnonzero(known).tolist() if chr(code) != chr(code).lower()]] = False
        return known


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
        begin, end = special(card.begin, "[CLS]"), special(card.end, "[SEP]")
        pad, unknown = special(card.pad, "[PAD]"), special(card.unknown, "[UNK]")
        self.mask = ids.get("[MASK]")
        self.tables = build_tables(pieces, (begin, end, pad, unknown))

    def encode(self, texts: TextColumn, device: Device) -> TokenRows:
        """Converts each text to at most `max_length` tokens, on the device; a cut text keeps its end token."""
        ids, lengths, unknown = token_ids(
            device, resident(device, self.tables), texts.strings(device), self.card.max_length
        )
        return TokenRows(ids, device.down(lengths), device.down(unknown))

    def count_unknown(self, texts: TextColumn, device: Device) -> np.ndarray:
        """Counts [UNK] as `encode` does: int32 (texts,), on the host."""
        return self.encode(texts, device).unknown


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


def widths(lengths: np.ndarray, card: TokenInput) -> np.ndarray:
    """Returns the width that each text is padded to: int64 (texts,), a power of two from `MIN_WIDTH`, or `max_length`.

    It depends on the text alone: a network's output can change in the last bit with the width of its input.

    Args:
        lengths: int (texts,), tokens of each text.
        card: the tokenizer's section of a model card.
    """
    if card.fixed_length:
        return np.full(len(lengths), card.max_length)
    _, bits = np.frexp(np.maximum(lengths, MIN_WIDTH) - 1)  # n - 1 < 2^bits, the smallest power of two from n on
    return np.minimum(np.int64(1) << bits, card.max_length)


def utf8_rows(texts: TextColumn) -> list[bytes]:
    """Returns each text in UTF-8, which libraries on the host take; a missing text is empty."""
    rows: list[bytes] = Strings.of(texts.arrow()).arrow().cast(pa.large_binary()).to_pylist()
    return rows


def _lower_case(lines: list[bytes]) -> list[bytes]:
    """Converts texts in UTF-8 to lower case, all in one call. The byte between them is not valid in UTF-8."""
    joined = b"\xff".join(lines).decode("utf-8", "surrogateescape")
    return lower_case(joined).encode("utf-8", "surrogateescape").split(b"\xff") if lines else []
