"""A model card: one YAML that says what a model is, what goes in and what comes out."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.kernels.text.lexicon import Patterns

TASKS = ("image_embedding", "text_embedding", "image_classifier", "text_classifier")
CARDS = resources.files("danqing.trt_models") / "cards"


@dataclass(frozen=True)
class ImageInput:
    """How a decoded picture becomes the model's input; mean and std are inside the model's graph.

    `fit`: `shorter-edge` scales the shorter side to `resize`, `stretch` scales both; then the centre
    `size` × `size` is cut out. `jpeg_quality`: a JPEG round trip the model was trained with.
    """

    size: int
    resize: int
    fit: Literal["shorter-edge", "stretch"] = "shorter-edge"
    interpolation: Literal["lanczos", "cubic", "linear"] = "cubic"
    jpeg_quality: int | None = None


@dataclass(frozen=True)
class TokenInput:
    """The tokenizer of a text model: a file of an installed package, or one beside the card.

    Ids left out: `wordpiece` takes those of [UNK], [CLS], [SEP] and [PAD] from its vocabulary; `sentencepiece` has 0
    for an unknown piece, neither begin nor end, and -1 for padding. `lower_case`: the text becomes lower case first
    (`wordpiece` always does that). `fixed_length`: every text is padded to `max_length`.
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
    """Terms of one file: those of at least `full` Han characters count 1, of at least `half` count 0.5.

    `without`: terms of the file that are left out.
    """

    file: str
    full: int
    half: int | None = None
    package: str | None = None
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """A model.

    Exactly one of these says where it comes from: `build`, the exporter that makes the ONNX from installed packages;
    `export`, the one that makes it from a published checkpoint, which `published` names and the `shapes` of some of
    its tensors tell from others; `onnx`, a file beside the card, with its `sha256`; `lexicon`, term lists, no network.
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
        """Where a user's own card lies."""
        return self.file.parent if self.file else None

    @property
    def hash(self) -> str:
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("file", "title")}
        return hashlib.sha256(repr(sorted(content.items())).encode()).hexdigest()[:16]


def card_names() -> list[str]:
    return sorted(p.name.removesuffix(".yaml") for p in CARDS.iterdir() if p.name.endswith(".yaml"))


@cache
def load_card(name_or_path: str) -> Card:
    """A built-in card by name, or a user's own by the path of its YAML.

    Raises:
        DanqingError: no such card, or a card with a wrong key or value; names the file.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise DanqingError(f"{path}: no such model card")
        return _read(path.read_text(encoding="utf-8"), str(path), path)
    if name_or_path not in card_names():
        raise DanqingError(
            f"no model card {name_or_path!r}; {did_you_mean(name_or_path, card_names())}. For a model of your own, "
            "put a card (.yaml) beside its .onnx and give the card's path, e.g. --set models.image_embedding=my.yaml"
        )
    return _read((CARDS / f"{name_or_path}.yaml").read_text(encoding="utf-8"), f"{name_or_path}.yaml", None)


def _read(text: str, where: str, file: Path | None) -> Card:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        raise DanqingError(f"{where}: not valid YAML: {problem}") from None
    if not isinstance(content, dict):
        raise DanqingError(f"{where}: a model card is a mapping")
    for key, kind in (("image_input", ImageInput), ("token_input", TokenInput)):
        if key in content:
            content[key] = _build(kind, content[key], f"{where}: {key}")
    content["lexicon"] = tuple(_build(TermList, entry, f"{where}: lexicon") for entry in content.get("lexicon", ()))
    if "patterns" in content:
        content["patterns"] = _build(Patterns, content["patterns"], f"{where}: patterns")._asdict()
    card = _build(Card, content | {"file": file}, where)
    if card.task not in TASKS:
        raise DanqingError(f"{where}: task {card.task!r}; {did_you_mean(card.task, TASKS)}")
    if sum(map(bool, (card.build, card.export, card.onnx, card.lexicon))) != 1:
        raise DanqingError(f"{where}: give exactly one of 'build', 'export', 'onnx' and 'lexicon'")
    if card.onnx and not card.sha256:
        raise DanqingError(f"{where}: 'onnx' needs the file's 'sha256' beside it")
    return card


def _build(kind: type[Any], content: Any, where: str) -> Any:
    if not isinstance(content, dict):
        raise DanqingError(f"{where}: must be a mapping")
    known = list(inspect.signature(kind).parameters)
    for key in content:
        if key not in known:
            raise DanqingError(f"{where}: unknown key {key!r}; {did_you_mean(str(key), known)}")
    try:
        return kind(**content)
    except TypeError as problem:
        raise DanqingError(f"{where}: {problem}") from None
