"""Characters that a SentencePiece model always knows: no token of a text of such characters is [UNK]."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import sentencepiece

from danqing.kernels.text.captions import CODE_POINTS

SPACE = "\u2581"
"""Stands for a space in pieces."""
NORMALIZERS = ("identity", "nfkc", "nfkc_cf", "nmt_nfkc", "nmt_nfkc_cf")
"""SentencePiece's own rules. Where they replace several characters at once, one of these is, or is normalized to, a
combining character or a part of a Hangul syllable."""
NOT_HAN = ((0x20, 0x33FF), (0xF900, 0xFFFD))
"""First and last code points of blocks with punctuation, letters and compatibility characters."""
HANGUL_PARTS = ((0x1100, 0x11FF), (0xA960, 0xA97F), (0xD7B0, 0xD7FF))
"""First and last code points of the parts that are composed to syllables."""


def known_characters(processor: sentencepiece.SentencePieceProcessor) -> np.ndarray:
    """Finds the characters that normalize to pieces, whatever characters are beside them.

    A model makes [UNK] only of normalized characters that are not pieces. Models of whole words are the exception.

    Returns:
        bool (CODE_POINTS,); no character if the model is of words or has rules of its own.
    """
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    known = np.zeros(CODE_POINTS, np.bool_)
    model = messages.ModelProto.FromString(processor.serialized_model_proto())
    kinds = messages.ModelProto.SentencePiece.NORMAL, messages.ModelProto.SentencePiece.USER_DEFINED
    pieces = {piece.piece for piece in model.pieces if len(piece.piece) == 1 and piece.type in kinds}
    is_of_words = model.trainer_spec.model_type == messages.TrainerSpec.WORD
    if SPACE not in pieces or is_of_words or model.normalizer_spec.name not in NORMALIZERS:
        return known
    characters = sorted(pieces.union(chr(code) for first, last in NOT_HAN for code in range(first, last + 1)))
    for character, parts in zip(characters, processor.encode(characters, out_type=str), strict=True):
        normal = "".join(parts).strip(SPACE)
        known[ord(character)] = normal and pieces.issuperset(normal) and not any(map(_combines, character + normal))
    known[ord(" ")] = True
    return known


def _combines(character: str) -> bool:
    """Whether a character and the one before it can be normalized to one."""
    is_part = any(first <= ord(character) <= last for first, last in HANGUL_PARTS)
    return is_part or unicodedata.category(character).startswith("M")
