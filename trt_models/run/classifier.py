"""Text classifiers: word lists with the marks of advertisements, or a network."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from danqing.kernels.portable import ArrayLauncher
from danqing.kernels.text.lexicon import UNIT, Patterns, weigh
from danqing.kernels.text.strings import Strings
from danqing.kernels.text.trie import build
from danqing.trt_models.card import TermList
from danqing.trt_models.run.session import Session
from danqing.trt_models.run.tokenizer import AnyTokenizer


class TextClassifier(Protocol):
    def __call__(self, texts: Strings) -> Any:
        """Rows of text on the device → float32 (texts,) there: how unsafe each is."""
        ...


class TextNetwork:
    """Any ONNX text model whose card names a tokenizer and an output `probability`."""

    def __init__(self, session: Session, tokenizer: AnyTokenizer, device: ArrayLauncher) -> None:
        self.session, self.tokenizer, self.device = session, tokenizer, device

    def __call__(self, texts: Strings) -> Any:
        lines = texts.on_host(self.device).arrow().to_pylist()
        tokens = self.tokenizer.pad(self.tokenizer.encode(lines))
        return self.session.run(tokens=tokens)["probability"].astype(np.float32)


class Lexicon:
    """Scores texts by the different terms they contain, and by patterns of advertisements."""

    def __init__(self, weights: Mapping[str, float], patterns: Patterns, device: ArrayLauncher) -> None:
        self.patterns, self.device = patterns, device
        self._terms = build({term: round(UNIT * weight) for term, weight in sorted(weights.items())})

    def __call__(self, texts: Strings) -> Any:
        return weigh(self.device, texts, self._terms, self.patterns)


def read_terms(lists: Iterable[tuple[TermList, Path]]) -> dict[str, float]:
    """Term → weight, as the card says.

    Single characters and short words of such lists stand in harmless captions all the time, hence the card gives a
    length from which on a term counts. Only all-Han terms are used: Latin fragments match inside other words.
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
