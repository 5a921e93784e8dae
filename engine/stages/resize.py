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
        inputs = [context.models.image_input(self.ROLES[column]) for column in self.columns]
        self.graph = resize_graph(inputs, context.device)

    def __call__(self, batch: Batch) -> None:
        parts: list[list[np.ndarray]] = [[] for _ in self.columns]
        for start in range(0, len(batch), SLICE):
            self.graph.feed_input("pictures", batch["pixels"][start : start + SLICE])
            for part, resized in zip(parts, self.graph.run(), strict=True):
                part.append(np.array(resized.as_array()))  # DALI writes into the same buffer next time
        for column, part in zip(self.columns, parts, strict=True):
            batch[column] = np.concatenate(part)


def resize_graph(inputs: list[ImageInput], device: Device) -> Any:
    """A DALI pipeline from pictures of any size to one batch per model: resize, crop, as each card says."""

    @pipeline_def(batch_size=SLICE, num_threads=device.threads, device_id=None, prefetch_queue_depth=1)
    def graph() -> tuple[Any, ...]:
        pictures = fn.external_source(name="pictures", device=device.kind, layout="HWC", batch=True, no_copy=True)
        return tuple(_prepare(pictures, model_input) for model_input in inputs)

    pipeline = graph()
    pipeline.build()
    return pipeline


def _prepare(pictures: Any, wanted: ImageInput) -> Any:
    interpolation = INTERPOLATIONS[wanted.interpolation]
    if wanted.fit == "shorter-edge":
        resized = fn.resize(pictures, resize_shorter=wanted.resize, interp_type=interpolation, antialias=True)
    else:
        resized = fn.resize(
            pictures, resize_x=wanted.resize, resize_y=wanted.resize, interp_type=interpolation, antialias=True
        )
    if wanted.jpeg_quality:
        resized = fn.jpeg_compression_distortion(resized, quality=wanted.jpeg_quality)
    # Crops start at whole pixels, rounded down, as the reference preprocessing of the models does.
    return fn.crop(resized, crop=(wanted.size, wanted.size), rounding="truncate")
