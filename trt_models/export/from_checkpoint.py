"""From a published checkpoint to a model in the store."""

from __future__ import annotations

from pathlib import Path

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.card import Card
from danqing.trt_models.export import ARCHITECTURES, exporter
from danqing.trt_models.export.checkpoint import Checkpoint
from danqing.trt_models.export.graph import Network
from danqing.trt_models.package_files import package_file, sha256
from danqing.trt_models.store import keep, model_folder


def export(card: Card, source: Path) -> Path:
    """Makes the model's ONNX from a published checkpoint, and keeps it where recipes find it by the card's name.

    Args:
        source: folder with config.json, the weights and, for a text model, its vocabulary.

    Returns:
        The folder it is kept in.

    Raises:
        DanqingError: a card that does not come from a checkpoint, or a checkpoint that is not the card's.
    """
    if not card.export:
        raise DanqingError(
            f"{card.name} comes from {'installed packages' if card.build else 'beside its card'}; nothing to export"
        )
    write = exporter(card.export)
    if write is None:
        raise DanqingError(
            f"card {card.name}: no exporter {card.export!r}; there are those of {', '.join(ARCHITECTURES)}"
        )
    weights = Checkpoint(source)
    if card.token_input:  # before the long work
        package_file(None, card.token_input.file, source)
    _check_shapes(card, weights)
    network = write(weights)
    weights.expect_all_read()
    _check_input(card, network, weights)
    note = {"checkpoint": {path.name: sha256(path) for path in weights.files}}
    also = [source / card.token_input.file] if card.token_input else []
    keep(card, model_folder(card), network.save, note, also)
    return model_folder(card)


def _check_shapes(card: Card, weights: Checkpoint) -> None:
    """Refuses another checkpoint of the same architecture: B/16 would make as good a graph as L/14."""
    for name, shape in card.shapes.items():
        found = weights.shape(name)
        if found != tuple(shape):
            what = f"its {name} has the shape {found}" if found else f"it has no {name}"
            raise DanqingError(f"{weights.folder}: {what}, {card.name} has {tuple(shape)}; is it {card.published}?")


def _check_input(card: Card, network: Network, weights: Checkpoint) -> None:
    """The card's picture size or token count must be the network's."""
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
                f"card {card.name}: says {wanted}, and the checkpoint was made for {side}; is it {card.published}?"
            )
