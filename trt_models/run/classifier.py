"""Text classifiers: word lists with patterns of advertisements, or a network."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.text_column import TextColumn
from danqing.kernels.text.lexicon import UNITS_PER_WEIGHT, Patterns, weigh
from danqing.kernels.text.trie import build
from danqing.trt_models.card import TermList
from danqing.trt_models.run.session import Session
from danqing.trt_models.run.texts import run_texts
from danqing.trt_models.run.tokenizer import AnyTokenizer

MAX_STRINGS = 20_000
"""Number of strings of a pattern, see `expand`."""


class TextClassifier(Protocol):
    """Scores how unsafe texts are."""

    def __call__(self, texts: TextColumn) -> Any:
        """Scores each text.

        Returns:
            float32 (texts,), on the device: higher is less safe.
        """
        ...


class TextNetwork:
    """A network with an output `probability`, whose card names a tokenizer."""

    def __init__(self, session: Session, tokenizer: AnyTokenizer, device: Device) -> None:
        self.session, self.tokenizer, self.device = session, tokenizer, device

    def __call__(self, texts: TextColumn) -> Any:
        ids, lengths, _ = self.tokenizer.encode(texts, self.device)
        outputs = run_texts(self.session, self.tokenizer.card, ids, lengths, self.device)
        return outputs["probability"].astype(np.float32)


class Lexicon:
    """Adds up the weights of a text's distinct terms and of its patterns of advertisements.

    Args:
        weights: term → weight, in steps of 1 / `UNITS_PER_WEIGHT`.
        patterns: weight of each occurrence of a pattern.
        device: holds the texts and the scores.
    """

    def __init__(self, weights: Mapping[str, float], patterns: Patterns, device: Device) -> None:
        self.patterns, self.device = patterns, device
        self._terms = build({term: round(UNITS_PER_WEIGHT * weight) for term, weight in sorted(weights.items())})

    def __call__(self, texts: TextColumn) -> Any:
        return weigh(self.device, texts.strings(self.device), self._terms, self.patterns)


def read_terms(lists: Iterable[tuple[TermList, Path]]) -> dict[str, float]:
    """Reads term lists and files of patterns.

    Harmless captions often contain the single characters and short words of such lists, so the card gives the minimum
    length of a term. Terms with other than Han characters are left out: Latin fragments match inside other words.

    Args:
        lists: each list of a card, and its file.

    Returns:
        Term → weight, 1 or 0.5.
    """
    weights: dict[str, float] = {}
    for entry, path in lists:
        if entry.full is None:
            weights |= read_patterns(path)
            continue
        for term in _lines(path):
            if not all("\u4e00" <= character <= "\u9fff" for character in term) or term in entry.without:
                continue
            if len(term) >= entry.full:
                weights[term] = 1.0
            elif entry.half is not None and len(term) >= entry.half:
                weights.setdefault(term, 0.5)
    return weights


def read_patterns(path: Path) -> dict[str, float]:
    """Reads a file of patterns: on each line a weight and a pattern, see `expand`; `#` starts a comment line.

    Returns:
        Term, in lower case → weight.

    Raises:
        DanqingError: a line is not a weight and a pattern; names the file and the line.
    """
    weights: dict[str, float] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        weight, _, pattern = line.strip().partition(" ")
        try:
            value = float(weight)
            if not 1 / UNITS_PER_WEIGHT <= value <= UNITS_PER_WEIGHT:
                raise ValueError(f"the weight {weight} is not in {1 / UNITS_PER_WEIGHT} to {UNITS_PER_WEIGHT}")
            for term in expand(pattern.strip().lower()):
                weights[term] = max(value, weights.get(term, 0.0))
        except ValueError as problem:
            raise DanqingError(f"{path}:{number}: {problem}; write a weight and a pattern, as 1 代开(票|据)") from None
    return weights


def expand(pattern: str) -> list[str]:
    """Lists the strings that a pattern matches: `[a-d]` is a character of these, `(ab|cd)` a string of these (patterns,
    too), and `?` makes what stands before it optional.

    Raises:
        ValueError: a bracket is not closed or not opened, or the pattern matches the empty string or too many strings.

    >>> expand("加[微薇]信(号|群)?")
    ['加微信', '加薇信', '加微信号', '加薇信号', '加微信群', '加薇信群']
    """
    strings, at = _alternatives(pattern, 0)
    if at < len(pattern) or "" in strings:
        raise ValueError(f"{pattern!r} matches the empty string" if "" in strings else f"{pattern!r}: one ')' too many")
    return strings


def _alternatives(pattern: str, at: int) -> tuple[list[str], int]:
    """Lists the strings of pattern[at:] up to a closing parenthesis or the end; returns them and the position there."""
    done: list[str] = []
    strings = [""]
    while at < len(pattern) and pattern[at] != ")":
        if pattern[at] == "|":
            done, strings, at = done + strings, [""], at + 1
            continue
        choices, at = _choices(pattern, at)
        if at < len(pattern) and pattern[at] == "?":
            choices, at = ["", *choices], at + 1
        if len(strings) * len(choices) > MAX_STRINGS:
            raise ValueError(f"{pattern!r} matches more than {MAX_STRINGS:,} strings")
        strings = [start + choice for choice in choices for start in strings]
    return done + strings, at


def _choices(pattern: str, at: int) -> tuple[list[str], int]:
    """Lists the strings of the part at pattern[at]: a character, brackets, parentheses; returns them and its end."""
    if pattern[at] == "(":
        strings, end = _alternatives(pattern, at + 1)
    elif pattern[at] == "[":
        end = pattern.find("]", at)
        strings = _characters(pattern[at + 1 : end])
    else:
        return [pattern[at]], at + 1
    if not 0 <= end < len(pattern):
        raise ValueError(f"{pattern!r}: {pattern[at]!r} is not closed")
    return strings, end + 1


def _characters(content: str) -> list[str]:
    """Lists the characters that the content of brackets stands for; `0-9` is a range."""
    if len(content) > 2 and content[1] == "-":
        return [*map(chr, range(ord(content[0]), ord(content[2]) + 1)), *_characters(content[3:])]
    return [content[0], *_characters(content[1:])] if content else []


def _lines(path: Path) -> list[str]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            text = archive.read(archive.namelist()[0]).decode("utf-8")
    else:
        text = path.read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]
