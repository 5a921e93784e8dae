"""Two towers with a common space: what evaluation asks of a model, and the engine's models as such."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

import numpy as np

from danqing.engine.core.batch import Batch, pack
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.storage import path_of
from danqing.engine.core.text_column import TextColumn
from danqing.engine.recipe.reading import builtin_names, load_recipe
from danqing.engine.run.settings import Settings
from danqing.engine.stages import model_roles
from danqing.engine.stages.columns import known_columns
from danqing.engine.stages.embed import ImageEmbedding, TextEmbedding, Tokens
from danqing.engine.stages.network import ModelStage
from danqing.engine.stages.pictures import PictureReader
from danqing.trt_models.card import card_names, load_card
from danqing.trt_models.engines import Engine, Engines
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.store import is_exported

IMAGE, TEXT = "image_embedding", "text_embedding"
"""The roles of the two towers, and the tasks of their cards."""
IMAGE_END, TEXT_END = "-image", "-text"
"""Ends of the names of the two towers' cards."""
PLAIN = "model"
"""`MODEL@model`: no engine, the ONNX model in float32."""
TEXT_ROWS = 4096
"""Texts that are tokenized at a time."""


class Towers(Protocol):
    """Two towers with a common space.

    Attributes:
        name: names the model in tables and files.
    """

    name: str

    def images(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Embeds encoded pictures: float32 (n, d), unit rows on the host; zeros for a picture that does not decode."""
        ...

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts: float32 (n, d), unit rows on the host."""
        ...


class EngineTowers:
    """The engine's models as towers: its stages decode, resize, tokenize, and run the models or their engines.

    Args:
        name: names the model in tables and files.
        models: has the roles `image_embedding` and `text_embedding`.
        device: runs the stages.
        settings: the resizer and the limit of pixels.
    """

    def __init__(self, name: str, models: ModelSet, device: Device, settings: Settings) -> None:
        self.name, self.device = name, device
        self.read = PictureReader(models.image_input(IMAGE), device, settings.max_pixels, settings.resizer)
        context = settings.context(device, models, {*ImageEmbedding.needs, *TextEmbedding.needs})
        self.image, self.tokens, self.text = ImageEmbedding(context), Tokens(context), TextEmbedding(context)

    def images(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Embeds encoded pictures; see `Towers`."""
        pixels, row = self.read(pictures)
        self.device.wait()
        return self._embedded(self.image, IMAGE, len(pictures), _batch(row, embedding_input=pixels))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts as they are, without the cleaning of captions; see `Towers`."""
        parts = []
        for start in range(0, len(texts), TEXT_ROWS):
            part = list(texts[start : start + TEXT_ROWS])
            batch = _batch(np.arange(len(part)), text_clean=TextColumn.of(part))
            self.tokens(batch)
            parts.append(self._embedded(self.text, TEXT, len(part), batch))
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def _embedded(self, stage: ModelStage, column: str, rows: int, batch: Batch) -> np.ndarray:
        """Runs a stage; returns the column's unit vectors in the order of `row`, zeros for rows without one."""
        vectors = np.zeros((rows, 0), np.float32)
        for part in pack([batch], stage.capacity, stage.weights):
            stage(part)
            self.device.wait()
            part = part.take(np.array([error is None for error in part["error"]], bool))
            if len(part):
                found = self.device.down(part[column]).astype(np.float32)
                vectors = vectors if vectors.size else np.zeros((rows, found.shape[1]), np.float32)
                vectors[part["row"]] = found / np.linalg.norm(found, axis=1, keepdims=True)
        return vectors


def _batch(row: np.ndarray, **columns: Any) -> Batch:
    return Batch({"row": row, "error": [None] * len(row), **columns})


def find_model(text: str) -> tuple[str, dict[str, str], str]:
    """Reads a MODEL of the command line.

    Args:
        text: a folder with the cards of both towers, the common beginning of the cards' names, `IMAGE_CARD,TEXT_CARD`,
            or a recipe; `@ENGINE` behind it names a part of an engine's name, `@model` the model without an engine.

    Returns:
        Its name without the engine, role → card, and the engine, empty if none is named.

    Raises:
        DanqingError: there is no such model; names what there is.

    >>> find_model("siglip2-b-16-256@fp8")[1:]
    ({'image_embedding': 'siglip2-b-16-256-image', 'text_embedding': 'siglip2-b-16-256-text'}, 'fp8')
    """
    name, at, engine = text.rpartition("@")
    if not at or "/" in engine or path_of(text).exists():
        name, engine = text, ""
    elif not engine:
        raise DanqingError(f"{text}: name an engine behind the @, or `{PLAIN}` for the model without one")
    return name, _cards_of(name), engine


def check_model(text: str) -> None:
    """Checks that there is a model, and that its towers are exported.

    Args:
        text: see `find_model`.

    Raises:
        DanqingError: there is no such model, or `danqing models export` is needed first; names the towers.
    """
    name, cards, _ = find_model(text)
    missing = [card for card in cards.values() if not is_exported(load_card(card))]
    if not missing:
        return
    if path_of(name).is_dir():
        commands = [f"danqing models export {quote(name)}"]
    else:
        both = len(missing) == 2 and name + IMAGE_END in missing
        commands = [f"danqing models export {quote(card)} --from FOLDER" for card in ([name] if both else missing)]
    towers = " and ".join(load_card(card).name for card in missing)
    raise DanqingError(
        f"{text}: {towers} {'were' if len(missing) > 1 else 'was'} never exported; run "
        f"{' and '.join(f'`{command}`' for command in commands)} first"
    )


def _cards_of(name: str) -> dict[str, str]:
    if "," in name:
        cards = [part.strip() for part in name.split(",")]
        if len(cards) != 2:
            raise DanqingError(f"{name}: write two cards as IMAGE_CARD,TEXT_CARD")
        return dict(zip((IMAGE, TEXT), cards, strict=True))
    prefixes = {card.removesuffix(IMAGE_END) for card in card_names() if card.endswith(IMAGE_END)}
    if name in prefixes:
        return {IMAGE: name + IMAGE_END, TEXT: name + TEXT_END}
    path = path_of(name)
    if path.is_dir():
        return {role: str(_card_in(path, end)) for role, end in ((IMAGE, IMAGE_END), (TEXT, TEXT_END))}
    if name not in builtin_names() and not path.is_file():
        known = (*builtin_names(), *sorted(prefixes))
        raise DanqingError(
            f"no model {name!r}; {did_you_mean(name, known)}. Or give a folder with the cards of both towers "
            f"(*{IMAGE_END}.yaml, *{TEXT_END}.yaml), or IMAGE_CARD,TEXT_CARD"
        )
    models = load_recipe(name, (), known_columns(), model_roles()).models
    if missing := [role for role in (IMAGE, TEXT) if role not in models]:
        raise DanqingError(f"{name}: the recipe names no model for {' and '.join(missing)}")
    return {role: models[role] for role in (IMAGE, TEXT)}


def _card_in(folder: Path, end: str) -> Path:
    found = sorted(path for path in folder.iterdir() if path.name.endswith((f"{end}.yaml", f"{end}.yml")))
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none"
        raise DanqingError(
            f"{folder}: needs exactly one card *{end}.yaml; there: {there}. Or give IMAGE_CARD,TEXT_CARD"
        )
    return found[0]


def _engines_named(name: str, cards: Mapping[str, str], part: str) -> dict[str, Engine | None]:
    """Role → the engine whose name has the part; None, the model, for a tower without one.

    Raises:
        DanqingError: neither tower has such an engine, or one has several.
    """
    if part == PLAIN:
        return dict.fromkeys(cards, None)
    engines = {role: Engines(load_card(card)) for role, card in cards.items()}
    having = {role: of for role, of in engines.items() if any(part in engine.name for engine in of.all())}
    if not having:
        of = next(iter(engines.values()))
        raise DanqingError(
            f"{name}@{part}: neither tower has such an engine; `danqing models list` names them, and this makes one: "
            f"danqing models compile {of.asked} --precision fp16"
        )
    return {role: having[role].named(part) if role in having else None for role in cards}


@contextmanager
def open_towers(text: str, settings: Settings | None = None) -> Iterator[EngineTowers]:
    """Opens a model for a `with` block.

    Args:
        text: see `find_model`. Without an engine, each tower runs the engine in use, as SCORE does.
        settings: the device, threads, resizer and limits; None for the CPU.

    Raises:
        DanqingError: there is no such model, it was never exported, or it does not open.
    """
    settings = settings or Settings()
    name, cards, engine = find_model(text)
    for role, card in cards.items():
        if load_card(card).task != role:
            raise DanqingError(f"{text}: {card} is a model for {load_card(card).task}, not an {role}")
    check_model(text)
    engines = _engines_named(name, cards, engine) if engine else None
    with open_device(settings.device, settings.threads) as device:
        yield EngineTowers(text, ModelSet(cards, engines, settings.strict_engines), device, settings)
