"""Text classifiers: word lists with patterns of advertisements, or a network."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from danqing.kernels.portable import ArrayLauncher
from danqing.kernels.text.lexicon import UNITS_PER_WEIGHT, Patterns, weigh
from danqing.kernels.text.strings import Strings
from danqing.kernels.text.trie import build
from danqing.trt_models.card import TermList
from danqing.trt_models.run.session import Session
from danqing.trt_models.run.texts import run_texts
from danqing.trt_models.run.tokenizer import AnyTokenizer


class TextClassifier(Protocol):
    """Scores how unsafe texts are."""

    def __call__(self, texts: Strings) -> Any:
        """Scores each text.

        Args:
            texts: rows on the device.

        Returns:
            float32 (texts,), on the device: higher is less safe.
        """
        ...


class TextNetwork:
    """A network with an output `probability`, whose card names a tokenizer."""

    def __init__(self, session: Session, tokenizer: AnyTokenizer, device: ArrayLauncher) -> None:
        self.session, self.tokenizer, self.device = session, tokenizer, device

    def __call__(self, texts: Strings) -> Any:
        lines = texts.on_host(self.device).arrow().to_pylist()
        ids = self.tokenizer.encode(lines)
        return run_texts(self.session, self.tokenizer, ids, self.device)["probability"].astype(np.float32)


class Lexicon:
    """Adds up the weights of a text's distinct terms and of its patterns of advertisements.

    Args:
        weights: term → weight, in steps of 1 / `UNITS_PER_WEIGHT`.
        patterns: weight of each occurrence of a pattern.
        device: holds the texts and the scores.
    """

    def __init__(self, weights: Mapping[str, float], patterns: Patterns, device: ArrayLauncher) -> None:
        self.patterns, self.device = patterns, device
        self._terms = build({term: round(UNITS_PER_WEIGHT * weight) for term, weight in sorted(weights.items())})

    def __call__(self, texts: Strings) -> Any:
        return weigh(self.device, texts, self._terms, self.patterns)


def read_terms(lists: Iterable[tuple[TermList, Path]]) -> dict[str, float]:
    """Reads term lists.

    Harmless captions often contain the single characters and short words of such lists, so the card gives the minimum
    length of a term. Terms with other than Han characters are left out: Latin fragments match inside other words.

    Args:
        lists: each list of a card, and its file.

    Returns:
        Term → weight, 1 or 0.5.
    """
    weights: dict[str, float] = {}
    for entry, path in lists:
        for term in _lines(path):
            if not all("\u4e00" <= character <= "\u9fff" for character in term) or term in entry.without:
                continue
            if len(term) >= entry.full:
                weights[term] = 1.0
            elif entry.half is not None and len(term) >= entry.half:
                weights.setdefault(term, 0.5)
    return weights


def _lines(path: Path) -> list[str]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            text = archive.read(archive.namelist()[0]).decode("utf-8")
    else:
        text = path.read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]
