"""Model cards: one YAML file per model, with its source, its inputs and its outputs."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.storage import path_of
from danqing.engine.core.user_yaml import LimitedLoader, describe_yaml_error, read_user_file
from danqing.kernels.text.lexicon import Patterns

TASKS = ("image_embedding", "text_embedding", "image_classifier", "text_classifier", "language_model")
CARDS = resources.files("danqing.trt_models") / "cards"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""A card's name, which becomes a part of the names of folders in the cache."""


@dataclass(frozen=True)
class ImageInput:
    """Preprocessing of a decoded picture. The model's graph itself subtracts the mean and divides by the deviation.

    Attributes:
        size: side in pixels of the square that the model reads, cut from the centre of the resized picture.
        resize: pixels to which `fit` scales.
        fit: `shorter-edge` scales the shorter side to `resize` and keeps the aspect ratio; `stretch` scales both sides.
        interpolation: filter of the resizer.
        jpeg_quality: quality of a JPEG round trip after resizing, for models trained on such files; None for none.
    """

    size: int
    resize: int
    fit: Literal["shorter-edge", "stretch"] = "shorter-edge"
    interpolation: Literal["lanczos", "cubic", "linear"] = "cubic"
    jpeg_quality: int | None = None


@dataclass(frozen=True)
class TokenInput:
    """The tokenizer of a text model.

    Attributes:
        kind: the algorithm.
        file: the SentencePiece model or the WordPiece vocabulary, in `package`, or beside the card if that is None.
        package: name of an installed distribution.
        unknown, begin, end, pad: token ids. If None, `wordpiece` takes the ids of [UNK], [CLS], [SEP] and [PAD] from
            its vocabulary; `sentencepiece` uses 0 for unknown, -1 for padding, and adds neither begin nor end.
        max_length: maximum number of tokens of a text, begin and end included.
        lower_case: convert the text to lower case first; `wordpiece` always does.
        fixed_length: pad every text to `max_length`.
    """

    kind: Literal["sentencepiece", "wordpiece"]
    file: str
    package: str | None = None
    unknown: int | None = None
    begin: int | None = None
    end: int | None = None
    pad: int | None = None
    max_length: int = 128
    lower_case: bool = False
    fixed_length: bool = False


@dataclass(frozen=True)
class TermList:
    """A file of terms, one per line, or of patterns with their weights (`run.classifier.read_patterns`).

    Attributes:
        file: the file, in `package`, or beside the card if that is None. A .zip holds one such file.
        full: minimum number of Han characters of terms with weight 1; None for a file of patterns.
        half: minimum number of Han characters of other terms, with weight 0.5; None for no such terms.
        package: name of an installed distribution.
        without: terms to leave out.
    """

    file: str
    full: int | None = None
    half: int | None = None
    package: str | None = None
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """A model. Exactly one of `build`, `export`, `onnx` and `lexicon` gives its source.

    Attributes:
        name: unique name of letters, digits, `.`, `_` and `-`; recipes and commands use it.
        task: one of `TASKS`.
        licence: licence of the weights.
        title: one line for people.
        build: name of the function in `export.BUILDERS` that makes the ONNX from installed packages.
        export: `MODULE.FUNCTION` of `trt_models.export` that makes the ONNX from a published checkpoint.
        published: the checkpoint's name on the Hugging Face Hub.
        shapes: tensor name → shape, which distinguishes the checkpoint from others of its architecture.
        weights: SHA-256 of weights: `PACKAGE:FILE` → of a file that `build` reads, `FILE` → of a file beside the card
            that holds tensors of `onnx` (ONNX's external data).
        onnx: an ONNX file beside the card.
        sha256: SHA-256 of `onnx`.
        image_input, token_input: preprocessing of the input.
        lexicon: term lists, for a classifier without a network.
        patterns: pattern name → weight, see `kernels.text.lexicon.Patterns`.
        outputs: output name → description.
        thresholds: criterion → suggested interval.
        file: the card's path; None for a built-in card.
    """

    name: str
    task: str
    licence: str
    title: str = ""
    build: str | None = None
    export: str | None = None
    published: str = ""
    shapes: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    onnx: str | None = None
    sha256: str | None = None
    image_input: ImageInput | None = None
    token_input: TokenInput | None = None
    lexicon: tuple[TermList, ...] = ()
    patterns: Mapping[str, float] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None

    @property
    def folder(self) -> Path | None:
        """The folder of a user's card; None for a built-in card."""
        return self.file.parent if self.file else None

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the SHA-256 of all fields but `file` and `title`."""
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("file", "title")}
        return hashlib.sha256(repr(sorted(content.items())).encode()).hexdigest()[:16]


def card_names() -> list[str]:
    """Returns the names of the built-in cards, sorted."""
    return sorted(p.name.removesuffix(".yaml") for p in CARDS.iterdir() if p.name.endswith(".yaml"))


@cache
def load_card(name_or_path: str) -> Card:
    """Reads a card.

    Args:
        name_or_path: name of a built-in card, or path of a user's card (.yaml or .yml).

    Raises:
        DanqingError: there is no such card, or it has an unknown key or a wrong value; the message names the file.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        path = path_of(name_or_path)
        if not path.is_file():
            raise DanqingError(f"{path}: no such model card")
        return _read(read_user_file(path, "model card"), str(path), path)
    if name_or_path not in card_names():
        raise DanqingError(
            f"no model card {name_or_path!r}; {did_you_mean(name_or_path, card_names())}. For a model of your own, "
            "put a card (.yaml) beside its .onnx and give the card's path, e.g. --set models.image_embedding=my.yaml"
        )
    return _read((CARDS / f"{name_or_path}.yaml").read_text(encoding="utf-8"), f"{name_or_path}.yaml", None)


def _read(text: str, where: str, file: Path | None) -> Card:
    try:
        content = yaml.load(text, LimitedLoader)
    except (yaml.YAMLError, ValueError) as problem:  # ValueError: a date that does not exist
        raise DanqingError(describe_yaml_error(where, problem)) from None
    if not isinstance(content, dict):
        raise DanqingError(f"{where}: a model card is a mapping")
    for key, kind in (("image_input", ImageInput), ("token_input", TokenInput)):
        if key in content:
            content[key] = _build(kind, content[key], f"{where}: {key}")
    lists = content.get("lexicon", [])
    if not isinstance(lists, list):
        raise DanqingError(f"{where}: lexicon: must be a list of term lists")
    content["lexicon"] = tuple(_build(TermList, entry, f"{where}: lexicon") for entry in lists)
    if "patterns" in content:
        content["patterns"] = _build(Patterns, content["patterns"], f"{where}: patterns")._asdict()
    card = _build(Card, content | {"file": file}, where)
    if not (isinstance(card.name, str) and NAME.fullmatch(card.name)):
        raise DanqingError(
            f"{where}: name {card.name!r}: use letters, digits, '.', '_' and '-'; begin with one of the first two"
        )
    if card.task not in TASKS:
        raise DanqingError(f"{where}: task {card.task!r}; {did_you_mean(str(card.task), TASKS)}")
    if sum(map(bool, (card.build, card.export, card.onnx, card.lexicon))) != 1:
        raise DanqingError(f"{where}: give exactly one of 'build', 'export', 'onnx' and 'lexicon'")
    if card.onnx and not (card.sha256 and isinstance(card.sha256, str)):
        raise DanqingError(f"{where}: 'onnx' needs the file's 'sha256', 64 hex digits (sha256sum FILE)")
    if not isinstance(card.weights, Mapping):
        raise DanqingError(f"{where}: 'weights' is a mapping of files to their SHA-256")
    return card


def _build(kind: type[Any], content: Any, where: str) -> Any:
    if not isinstance(content, dict):
        raise DanqingError(f"{where}: must be a mapping")
    parameters = inspect.signature(kind).parameters
    for key in content:
        if key not in parameters:
            raise DanqingError(f"{where}: unknown key {key!r}; {did_you_mean(str(key), parameters)}")
    missing = [name for name, field in parameters.items() if field.default is field.empty and name not in content]
    if missing:
        raise DanqingError(f"{where}: {' and '.join(map(repr, missing))} must be given")
    try:
        return kind(**content)
    except TypeError as problem:
        raise DanqingError(f"{where}: {problem}") from None
