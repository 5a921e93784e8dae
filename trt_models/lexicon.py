"""A text classifier without a network: how many terms of a word list a caption contains."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from trt_models.card import TermList


class Lexicon:
    """Scores captions by the distinct terms they contain: long terms count 1, short ones 0.5.

    Single characters and short words of such lists stand in harmless captions all the time; the card says from
    which length on a term counts. Only all-Han terms are used: Latin fragments match inside other words.
    """

    def __init__(self, lists: Iterable[tuple[TermList, Path]]) -> None:
        self.weights: dict[str, float] = {}
        for entry, path in lists:
            for term in _read_terms(path):
                if not all("\u4e00" <= character <= "\u9fff" for character in term):
                    continue
                if len(term) >= entry.full:
                    self.weights[term] = 1.0
                elif entry.half is not None and len(term) >= entry.half:
                    self.weights.setdefault(term, 0.5)
        self.lengths = sorted({len(term) for term in self.weights})

    def terms(self, text: str) -> set[str]:
        """The terms found in `text`."""
        return {
            text[start : start + length]
            for start in range(len(text))
            for length in self.lengths
            if text[start : start + length] in self.weights
        }

    def __call__(self, texts: list[str]) -> np.ndarray:
        """float32 (texts,): the summed weights of each text's distinct terms."""
        return np.array([sum(self.weights[term] for term in self.terms(text)) for text in texts], np.float32)


def _read_terms(path: Path) -> list[str]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            text = archive.read(archive.namelist()[0]).decode("utf-8")
    else:
        text = path.read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]
