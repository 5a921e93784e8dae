"""Exporters: from published weights to ONNX. Each is found by the `build` or `export` name of a model card."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from danqing.trt_models.export.checkpoint import Checkpoint
    from danqing.trt_models.export.graph import Network


def _efficientnet_lite0_conse() -> onnx.ModelProto:
    from danqing.trt_models.export import efficientnet_lite0, imagenet_names

    return efficientnet_lite0.build(imagenet_names.class_embeddings())


def _use_multilingual() -> onnx.ModelProto:
    from danqing.trt_models.export import imagenet_names, use_multilingual

    # Centred where the class names are: that is the space in which the image tower lays its pictures.
    return use_multilingual.build(imagenet_names.class_embeddings().mean(axis=0))


def _open_nsfw() -> onnx.ModelProto:
    from danqing.trt_models.export import open_nsfw

    return open_nsfw.build()


BUILDERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "efficientnet-lite0-conse": _efficientnet_lite0_conse,
    "use-multilingual": _use_multilingual,
    "open-nsfw": _open_nsfw,
}
"""From installed packages."""


def exporter(name: str) -> Callable[[Checkpoint], Network] | None:
    """From a published checkpoint, `MODULE.FUNCTION` of this package."""
    module, _, function = name.partition(".")
    if module not in ARCHITECTURES:
        return None
    return getattr(import_module(f"danqing.trt_models.export.{module}"), function, None)


ARCHITECTURES = ("aesthetic", "bert", "chinese_clip", "eva", "siglip")
