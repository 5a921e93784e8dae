"""Decoded pictures to the models' input sizes: our own kernel on CPUs, one DALI graph for all sizes on GPUs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from engine.batch import Batch
from engine.batch_sizes import BATCH_SIZES
from engine.device import Device
from engine.stages.base import Context, Stage
from kernels.resample import CUBIC, LANCZOS, LINEAR, resample
from trt_models.card import ImageInput

INTERPOLATIONS = {"lanczos": LANCZOS, "cubic": CUBIC, "linear": LINEAR}
HASHED = ImageInput(32, 32, "stretch", "lanczos")
"""The small picture that a perceptual hash is made of, scaled as imagehash does it."""


class Resize(Stage):
    """The input of every image model in the plan, and of the perceptual hash: uint8 (rows, size, size, 3) each."""

    name = "resize"
    needs = ("pixels",)
    produces = {"embedding_input": None, "safety_input": None, "aesthetic_input": None, "hash_input": None}
    ROLES = {
        "embedding_input": "image_embedding",
        "safety_input": "image_safety",
        "aesthetic_input": "aesthetics",
    }
    FIXED = {"hash_input": HASHED}

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.columns = [column for column in self.produces if column in context.wanted]
        inputs = [self.FIXED.get(column) or context.models.image_input(self.ROLES[column]) for column in self.columns]
        self.resize = open_resizer(inputs, context.device)

    def __call__(self, batch: Batch) -> None:
        for column, resized in zip(self.columns, self.resize(batch["pixels"]), strict=True):
            batch[column] = resized


class Resizer(Protocol):
    """Pictures of any size to one batch per model: resized and cropped as each model's card says."""

    def __call__(self, pictures: Sequence[Any]) -> list[Any]:
        """uint8 (height, width, 3) each → for every model uint8 (pictures, size, size, 3)."""
        ...


def open_resizer(inputs: Sequence[ImageInput], device: Device) -> Resizer:
    """The resizer of the device."""
    return DaliResizer(inputs, device) if device.kind == "cuda" else KernelResizer(inputs, device)


def scaled(shape: Sequence[int], wanted: ImageInput) -> tuple[int, int]:
    """(height, width) after scaling; the longer side is rounded down, as torchvision does."""
    if wanted.fit == "stretch":
        return wanted.resize, wanted.resize
    shorter = min(shape[:2])
    return shape[0] * wanted.resize // shorter, shape[1] * wanted.resize // shorter


class KernelResizer:
    """`kernels.resample`, a picture at a time on all threads: bit-equal to Pillow, and only the crop is computed."""

    def __init__(self, inputs: Sequence[ImageInput], device: Device) -> None:
        self.inputs, self.device = inputs, device

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        outputs = [np.empty((len(pictures), wanted.size, wanted.size, 3), np.uint8) for wanted in self.inputs]

        def prepare(row: int) -> None:
            for wanted, output in zip(self.inputs, outputs, strict=True):
                _prepare(pictures[row], wanted, output[row])

        self.device.map(prepare, range(len(pictures)))
        return outputs


def _prepare(picture: np.ndarray, wanted: ImageInput, out: np.ndarray) -> None:
    height, width = scaled(picture.shape, wanted)
    top, left = (height - wanted.size) // 2, (width - wanted.size) // 2
    interpolation = INTERPOLATIONS[wanted.interpolation]
    if not wanted.jpeg_quality:
        resample(picture, height, width, top, left, out, interpolation)
        return
    whole = np.empty((height, width, 3), np.uint8)
    resample(picture, height, width, 0, 0, whole, interpolation)
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "JPEG", quality=wanted.jpeg_quality)
    out[:] = np.asarray(Image.open(buffer))[top : top + wanted.size, left : left + wanted.size]


class DaliResizer:
    """One DALI graph for all the models' sizes: decode once, resize to each. The same graph on CPUs and GPUs."""

    def __init__(self, inputs: Sequence[ImageInput], device: Device) -> None:
        self.inputs, self.device = inputs, device
        self.batch_size = BATCH_SIZES[device.kind].resized_pictures
        self.graph = _graph(inputs, device, self.batch_size)

    def __call__(self, pictures: Sequence[Any]) -> list[Any]:
        xp = self.device.xp
        parts: list[list[Any]] = [[] for _ in self.inputs]
        for start in range(0, len(pictures), self.batch_size):
            some = pictures[start : start + self.batch_size]
            self.graph.feed_input("pictures", some)
            for number, wanted in enumerate(self.inputs):
                sizes = np.array([scaled(picture.shape, wanted) for picture in some], np.float32)
                self.graph.feed_input(f"size{number}", sizes)
            for part, resized in zip(parts, self.graph.run(), strict=True):
                part.append(xp.array(resized.as_tensor()))
            self.device.wait()  # for the copies: DALI writes into the same buffers next time
        return [xp.concatenate(part) for part in parts]


def _graph(inputs: Sequence[ImageInput], device: Device, batch_size: int) -> Any:
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import pipeline_def

    kinds = {"lanczos": types.INTERP_LANCZOS3, "cubic": types.INTERP_CUBIC, "linear": types.INTERP_LINEAR}

    on_gpu = device.kind == "cuda"

    @pipeline_def(
        batch_size=batch_size,
        num_threads=device.threads,
        device_id=device.number if on_gpu else None,
        prefetch_queue_depth=1,
    )
    def graph() -> tuple[Any, ...]:
        place = "gpu" if on_gpu else "cpu"
        pictures = fn.external_source(name="pictures", device=place, layout="HWC", batch=True, no_copy=True)
        outputs = []
        for number, wanted in enumerate(inputs):
            # Sizes come as numbers we rounded ourselves: DALI's own `resize_shorter` scales both sides by the
            # unrounded factor, which puts every pixel a fraction beside where the models' preprocessing has it.
            size = fn.external_source(name=f"size{number}", batch=True)
            output = fn.resize(pictures, size=size, interp_type=kinds[wanted.interpolation], antialias=True)
            if wanted.jpeg_quality:
                output = fn.jpeg_compression_distortion(output, quality=wanted.jpeg_quality)
            outputs.append(fn.crop(output, crop=(wanted.size, wanted.size), rounding="truncate"))
        return tuple(outputs)

    pipeline = graph()
    pipeline.build()
    return pipeline
