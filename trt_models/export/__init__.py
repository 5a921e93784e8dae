"""Exporters: functions that make ONNX models of published weights. A card names one by `build` or `export`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from danqing.trt_models.export.checkpoint import Checkpoint
    from danqing.trt_models.export.graph import ExportedNetwork


def _efficientnet_lite0_conse() -> onnx.ModelProto:
    from danqing.trt_models.export import efficientnet_lite0, imagenet_names

    return efficientnet_lite0.build(imagenet_names.class_embeddings())


def _use_multilingual() -> onnx.ModelProto:
    from danqing.trt_models.export import imagenet_names, use_multilingual

    # Centred on the mean of the class names, since the image tower averages embeddings of these names.
    return use_multilingual.build(imagenet_names.class_embeddings().mean(axis=0))


def _open_nsfw() -> onnx.ModelProto:
    from danqing.trt_models.export import open_nsfw

    return open_nsfw.build()


BUILDERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "efficientnet-lite0-conse": _efficientnet_lite0_conse,
    "use-multilingual": _use_multilingual,
    "open-nsfw": _open_nsfw,
}
"""`build` of a card → function that makes the model from installed packages."""

ARCHITECTURES = ("aesthetic", "bert", "chinese_clip", "eva", "siglip")
"""Modules of this package with exporters of published checkpoints."""


def exporter(name: str) -> Callable[[Checkpoint], ExportedNetwork] | None:
    """Finds an exporter of published checkpoints.

    Args:
        name: `export` of a card, `MODULE.FUNCTION` of this package.

    Returns:
        The function; None if there is no such one.
    """
    module, _, function = name.partition(".")
    if module not in ARCHITECTURES:
        return None
    return getattr(import_module(f"danqing.trt_models.export.{module}"), function, None)
