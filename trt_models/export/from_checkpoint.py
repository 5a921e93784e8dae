"""Exports a published checkpoint to a model in the store."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.card import Card
from danqing.trt_models.export import ARCHITECTURES, exporter
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.export.graph import ExportedNetwork
from danqing.trt_models.package_files import package_file, sha256
from danqing.trt_models.store import is_stored, model_folder, store_model


def export_all(cards: Iterable[Card], source: Path) -> list[Path]:
    """Exports the models of one checkpoint, such as both towers; if one fails, those that are new are removed again.

    For the arguments and errors see `export`.

    Returns:
        The models' folders in the store.
    """
    folders: list[Path] = []
    new: list[Path] = []
    try:
        for card in cards:
            here = is_stored(card)
            folders.append(export(card, source))
            new += [] if here else folders[-1:]
    except BaseException:
        for folder in new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return folders


def export(card: Card, source: Path) -> Path:
    """Exports a published checkpoint and stores the model under the card's name.

    Args:
        card: a card with `export`.
        source: folder with config.json, the weights and, for a text model, its vocabulary.

    Returns:
        The model's folder in the store.

    Raises:
        DanqingError: the card does not name an exporter, or the checkpoint is not the one that the card names.
    """
    if not card.export:
        source_name = "installed packages" if card.build else "files beside its card"
        raise DanqingError(f"{card.name} comes from {source_name}; nothing to export")
    write = exporter(card.export)
    if write is None:
        raise DanqingError(f"card {card.name}: no exporter {card.export!r}; the modules are {', '.join(ARCHITECTURES)}")
    weights = Checkpoint(source)
    if card.token_input:  # checks that the vocabulary exists before the slow part
        package_file(None, card.token_input.file, source)
    _check_shapes(card, weights)
    network = write(weights)
    weights.expect_all_read()
    _check_input(card, network, weights)
    note = {"checkpoint": {path.name: sha256(path) for path in weights.files}}
    extra_files = [source / card.token_input.file] if card.token_input else []
    store_model(card, model_folder(card), network.save, note, extra_files)
    return model_folder(card)


def _check_shapes(card: Card, weights: Checkpoint) -> None:
    """Refuses another checkpoint of the same architecture, such as B/16 for L/14, which would export without error."""
    for name, shape in card.shapes.items():
        found = weights.shape(name)
        if found != tuple(shape):
            what = f"its {name} has the shape {found}" if found else f"it has no {name}"
            raise DanqingError(f"{weights.folder}: {what}, {card.name} has {tuple(shape)}; is it {card.published}?")


def _check_input(card: Card, network: ExportedNetwork, weights: Checkpoint) -> None:
    """Checks that the card and the network have the same picture size or number of tokens."""
    for _, size in network.inputs.values():
        side, tokens = size[1], card.token_input
        if tokens is None:
            wanted = card.image_input.size if card.image_input else 0
            fits = side == wanted
        elif isinstance(side, int):
            wanted, fits = tokens.max_length, tokens.fixed_length and side == tokens.max_length
        else:
            config = weights.config.get("text_config", weights.config)
            wanted, side = tokens.max_length, weights.setting(config, "max_position_embeddings", 512)
            fits = wanted <= side
        if not fits:
            raise DanqingError(
                f"card {card.name}: its input has size {wanted}, the checkpoint's has {side}; is it {card.published}?"
            )
