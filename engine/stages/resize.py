"""Resizes pictures to the input sizes of the models, with our own kernels or with one DALI graph for all sizes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from danqing.engine.core.batch import Batch
from danqing.engine.core.batch_sizes import BATCH_SIZES
from danqing.engine.core.columns import COLUMNS, Column
from danqing.engine.core.device import Device
from danqing.engine.stages import CATALOGUE
from danqing.engine.stages.base import Context, Stage
from danqing.kernels.pictures.resample_batches import Window, resample_pictures
from danqing.kernels.pictures.resampling import CUBIC, LANCZOS, LINEAR, resample
from danqing.trt_models.card import ImageInput

INTERPOLATIONS = {"lanczos": LANCZOS, "cubic": CUBIC, "linear": LINEAR}


class _Columns:
    """The columns of `Resize`: every image input that a registered stage declares."""

    def __get__(self, stage: object, kind: type[Stage]) -> dict[str, Column]:
        names = (name for stage in CATALOGUE for name in stage.image_inputs)
        array = "uint8 (rows, size, size, 3)"
        return {
            name: COLUMNS.get(name) or Column(name, None, "pixels for a model", array=array, device=True)
            for name in names
        }


class Resize(Stage):
    """Resizes and crops pictures to the image inputs that the plan uses: uint8 (rows, size, size, 3) each."""

    name = "resize"
    needs = ("pixels",)
    produces = _Columns()

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        inputs: dict[str, ImageInput] = {}
        for stage in CATALOGUE:
            for column, size in stage.image_inputs.items():
                if column in context.wanted:
                    inputs[column] = size or context.models.image_input(str(stage.role))
        self.columns = list(inputs)
        self.resize = open_resizer(list(inputs.values()), context.device, context.resizer)

    def __call__(self, batch: Batch) -> None:
        for column, resized in zip(self.columns, self.resize(batch["pixels"]), strict=True):
            batch[column] = resized


class Resizer(Protocol):
    """Resizes and crops pictures of any size for several inputs, as the models' cards say."""

    def __call__(self, pictures: Sequence[Any]) -> list[Any]:
        """Makes the inputs.

        Args:
            pictures: uint8 (height, width, 3) each, on the device.

        Returns:
            For each input uint8 (pictures, size, size, 3), on the device.
        """
        ...


def chosen_resizer(name: str, kind: str) -> str:
    """Resolves `auto` to `dali` or `kernel` for a kind of device, `cpu` or `cuda`; returns other names as they are."""
    if name != "auto":
        return name
    return "dali" if kind == "cuda" else "kernel"


def open_resizer(inputs: Sequence[ImageInput], device: Device, resizer: str = "auto") -> Resizer:
    """Opens a resizer on the device.

    Args:
        inputs: the models' inputs, in the order of the results.
        device: holds the pictures and the results.
        resizer: `kernel`: bit-equal to Pillow on every device; `dali`: DALI's graph, which differs by a level or two;
            `auto`: `dali` on a GPU, `kernel` on a CPU.
    """
    if chosen_resizer(resizer, device.kind) == "dali":
        return DaliResizer(inputs, device)
    return BatchResizer(inputs, device) if device.kind == "cuda" else KernelResizer(inputs, device)


def scaled(shape: Sequence[int], wanted: ImageInput) -> tuple[int, int]:
    """Returns the size after scaling, before the crop; the longer side is rounded down, as in torchvision.

    >>> scaled((375, 500), ImageInput(224, 256))
    (256, 341)
    """
    if wanted.fit == "stretch":
        return wanted.resize, wanted.resize
    shorter = min(shape[:2])
    return shape[0] * wanted.resize // shorter, shape[1] * wanted.resize // shorter


class KernelResizer:
    """Resizes one picture per thread with `resample`, for CPUs: bit-equal to Pillow. Only the crop is computed."""

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
    window, interpolation = _window(picture.shape, wanted), INTERPOLATIONS[wanted.interpolation]
    resized = np.empty((window.rows, window.columns, 3), np.uint8) if wanted.jpeg_quality else out
    resample(picture, window.height, window.width, window.top, window.left, resized, interpolation)
    if wanted.jpeg_quality:
        _pass_through_jpeg(resized, wanted, out)


def _window(shape: Sequence[int], wanted: ImageInput) -> Window:
    """Returns the part of the scaled picture to compute: the crop, or everything if a JPEG round trip follows."""
    height, width = scaled(shape, wanted)
    if wanted.jpeg_quality:
        return Window(height, width, 0, 0, height, width)
    return Window(height, width, *_corner(height, width, wanted), wanted.size, wanted.size)


def _corner(height: int, width: int, wanted: ImageInput) -> tuple[int, int]:
    """Returns top and left of the centre crop."""
    return (height - wanted.size) // 2, (width - wanted.size) // 2


def _pass_through_jpeg(resized: np.ndarray, wanted: ImageInput, out: np.ndarray) -> None:
    """Encodes the picture as JPEG, decodes it, and writes the centre crop to `out`."""
    buffer = io.BytesIO()
    Image.fromarray(resized).save(buffer, "JPEG", quality=wanted.jpeg_quality)
    top, left = _corner(resized.shape[0], resized.shape[1], wanted)
    out[:] = np.asarray(Image.open(buffer, formats=("JPEG",)))[top : top + wanted.size, left : left + wanted.size]


class BatchResizer:
    """Resizes with `resample_batches`, for GPUs: bit-equal to Pillow, two launches per batch and input size.

    Inputs with a `jpeg_quality` make the JPEG round trip in libjpeg on the host, because DALI's JPEG distortion gives
    other pixels. For 256 × 256 pixels the round trip takes 1 ms of a core; 197 kB are copied to the host, and the crop
    of 224 × 224, 151 kB, back to the GPU.
    """

    def __init__(self, inputs: Sequence[ImageInput], device: Device) -> None:
        self.inputs, self.device = inputs, device

    def __call__(self, pictures: Sequence[Any]) -> list[Any]:
        return [self._resize(pictures, wanted) for wanted in self.inputs]

    def _resize(self, pictures: Sequence[Any], wanted: ImageInput) -> Any:
        windows = [_window(picture.shape, wanted) for picture in pictures]
        flat = resample_pictures(self.device, pictures, windows, INTERPOLATIONS[wanted.interpolation])
        shape = (len(pictures), wanted.size, wanted.size, 3)
        if not wanted.jpeg_quality:
            return flat.reshape(shape)
        out, ends = np.empty(shape, np.uint8), np.cumsum([3 * window.rows * window.columns for window in windows])
        resized = np.split(self.device.down(flat), ends[:-1])

        def pass_through_jpeg(row: int) -> None:
            picture = resized[row].reshape(windows[row].rows, windows[row].columns, 3)
            _pass_through_jpeg(picture, wanted, out[row])

        self.device.map(pass_through_jpeg, range(len(pictures)))
        return self.device.up(out)


class DaliResizer:
    """Resizes to all input sizes in one DALI graph, on a CPU or a GPU."""

    def __init__(self, inputs: Sequence[ImageInput], device: Device) -> None:
        self.inputs, self.device = inputs, device
        self.batch_size = BATCH_SIZES[device.kind].resized_pictures
        self.graph = _graph(inputs, device, self.batch_size)

    def __call__(self, pictures: Sequence[Any]) -> list[Any]:
        xp = self.device.xp
        parts: list[list[Any]] = [[] for _ in self.inputs]
        for start in range(0, len(pictures), self.batch_size):
            # DALI refuses rows with padding, and nvJPEG pads rows: 509 pixels took 1,536 bytes on an H200.
            part = [xp.ascontiguousarray(picture) for picture in pictures[start : start + self.batch_size]]
            self.graph.feed_input("pictures", part)
            for number, wanted in enumerate(self.inputs):
                sizes = np.array([scaled(picture.shape, wanted) for picture in part], np.float32)
                self.graph.feed_input(f"size{number}", sizes)
            for part, resized in zip(parts, self.graph.run(), strict=True):
                part.append(xp.array(resized.as_tensor()))
            self.device.wait()  # until the copies are made, as DALI reuses its buffers in the next run
        return [xp.concatenate(part) for part in parts]


def _graph(inputs: Sequence[ImageInput], device: Device, batch_size: int) -> Any:
    """Builds the DALI pipeline with the inputs `pictures` and, for the i-th output, `size{i}`."""
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
        memory = "gpu" if on_gpu else "cpu"
        pictures = fn.external_source(name="pictures", device=memory, layout="HWC", batch=True, no_copy=True)
        outputs = []
        for number, wanted in enumerate(inputs):
            # The sizes are inputs: DALI's `resize_shorter` scales both sides by the unrounded factor, which shifts all
            # pixels by a fraction against the models' preprocessing.
            size = fn.external_source(name=f"size{number}", batch=True)
            output = fn.resize(pictures, size=size, interp_type=kinds[wanted.interpolation], antialias=True)
            if wanted.jpeg_quality:
                output = fn.jpeg_compression_distortion(output, quality=wanted.jpeg_quality)
            outputs.append(fn.crop(output, crop=(wanted.size, wanted.size), rounding="truncate"))
        return tuple(outputs)

    pipeline = graph()
    pipeline.build()
    return pipeline
