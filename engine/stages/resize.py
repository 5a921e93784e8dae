"""Decoded pictures to the models' input sizes: one DALI graph for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def

from engine.batch import Batch
from engine.device import Device
from engine.stages.base import Context, Stage
from trt_models.card import ImageInput

INTERPOLATIONS = {"cubic": types.INTERP_CUBIC, "linear": types.INTERP_LINEAR}
SLICE = 32  # pictures in one pass of the graph


class Resize(Stage):
    """The input of every image model in the plan: uint8 (rows, size, size, 3) each."""

    name = "resize"
    needs = ("pixels",)
    produces = {"embedding_input": None, "safety_input": None}
    ROLES = {"embedding_input": "image_embedding", "safety_input": "image_safety"}

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.columns = [column for column in self.produces if column in context.wanted]
        self.inputs = [context.models.image_input(self.ROLES[column]) for column in self.columns]
        self.resize = Resizer(self.inputs, context.device)

    def __call__(self, batch: Batch) -> None:
        for column, resized in zip(self.columns, self.resize(batch["pixels"]), strict=True):
            batch[column] = resized


class Resizer:
    """Pictures of any size to one batch per model: resized and cropped as each model's card says."""

    def __init__(self, inputs: list[ImageInput], device: Device) -> None:
        self.inputs = inputs
        self.graph = _graph(inputs, device)

    def __call__(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        """uint8 (height, width, 3) each → for every model uint8 (pictures, size, size, 3)."""
        parts: list[list[np.ndarray]] = [[] for _ in self.inputs]
        for start in range(0, len(pictures), SLICE):
            some = pictures[start : start + SLICE]
            self.graph.feed_input("pictures", some)
            for number, wanted in enumerate(self.inputs):
                self.graph.feed_input(
                    f"size{number}", np.array([scaled(p.shape[:2], wanted) for p in some], np.float32)
                )
            for part, resized in zip(parts, self.graph.run(), strict=True):
                part.append(np.array(resized.as_array()))  # DALI writes into the same buffer next time
        return [np.concatenate(part) for part in parts]


def scaled(shape: tuple[int, int], wanted: ImageInput) -> tuple[int, int]:
    """(height, width) after scaling; the longer side is rounded down, as torchvision does."""
    if wanted.fit == "stretch":
        return wanted.resize, wanted.resize
    shorter = min(shape)
    return shape[0] * wanted.resize // shorter, shape[1] * wanted.resize // shorter


def _graph(inputs: list[ImageInput], device: Device) -> Any:
    @pipeline_def(batch_size=SLICE, num_threads=device.threads, device_id=None, prefetch_queue_depth=1)
    def graph() -> tuple[Any, ...]:
        pictures = fn.external_source(name="pictures", device=device.kind, layout="HWC", batch=True, no_copy=True)
        return tuple(_prepare(pictures, number, wanted) for number, wanted in enumerate(inputs))

    pipeline = graph()
    pipeline.build()
    return pipeline


def _prepare(pictures: Any, number: int, wanted: ImageInput) -> Any:
    # Sizes come as numbers we rounded ourselves: DALI's own `resize_shorter` scales both sides by the unrounded
    # factor, which puts every pixel a fraction beside where the models' preprocessing has it.
    size = fn.external_source(name=f"size{number}", batch=True)
    resized = fn.resize(pictures, size=size, interp_type=INTERPOLATIONS[wanted.interpolation], antialias=True)
    if wanted.jpeg_quality:
        resized = fn.jpeg_compression_distortion(resized, quality=wanted.jpeg_quality)
    return fn.crop(resized, crop=(wanted.size, wanted.size), rounding="truncate")
