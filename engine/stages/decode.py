"""Decodes pictures to pixels: nvImageCodec for the formats that it supports, Pillow for all others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import produced
from danqing.engine.core.device import Device
from danqing.engine.stages.base import Context, Stage
from danqing.engine.stages.header import has_alpha
from danqing.engine.stages.opening import open_picture, problem_of

os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # a broken picture is a row's error, not a line on stderr
os.environ.setdefault("OPENCV_LOG_LEVEL", "0")

FAST_FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats that nvImageCodec decodes as Pillow does. It reads others, but rounds TIFF in other ways, does not scale PPM
with a maximum other than 255, and broken JPEG 2000 files crash it on the CPU."""
FAST_MODES = ("1", "L", "P", "RGB", "I;16")
"""Pixel types that nvImageCodec converts to the right colours. It shows CMYK without an Adobe marker as black, and it
drops alpha."""
TURNS: Mapping[int, Callable[[Any], Any]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
"""EXIF orientation → the view of (height, width, 3) pixels that shows the picture upright."""

JPEG, END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
"""First and last marker of a JPEG file."""
END_BYTES = 64
"""The end-of-image marker must be within the last 64 bytes of a JPEG file, as some writers append a few bytes."""
MIN_WEIGHT_PIXELS = 100_000
"""Smallest weight of a picture in a batch: the models' inputs made from it have about as many pixels."""


class Decode(Stage):
    """`pixels`: per row one uint8 (height, width, 3) RGB array on the device, with the EXIF orientation applied.

    - Transparent pixels are composited onto white, as in a browser. The models' own preprocessing drops alpha, which
      shows the hidden colour, mostly black.
    - Only the first frame of an animation is decoded.
    - 16-bit samples are reduced to 8 bits.
    - Colour profiles (ICC) are not applied, as in the models' own preprocessing.
    """

    name = "decode"
    needs = ("image", "width", "height", "decode_format", "pixel_mode", "has_alpha", "orientation")
    produces = produced("pixels", "decodable")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.decoder = open_decoder(context.device)

    @property
    def capacity(self) -> float:
        return self.context.memory.pixels

    @staticmethod
    def weights(batch: Batch) -> np.ndarray:
        return np.maximum(batch["width"].astype(np.int64) * batch["height"], MIN_WEIGHT_PIXELS)

    def __call__(self, batch: Batch) -> None:
        pictures: list[Any] = [None] * len(batch)
        sizes, turns = list(zip(batch["height"].tolist(), batch["width"].tolist(), strict=True)), batch["orientation"]
        fast = _fast_rows(batch)
        for row, decoded in zip(fast, self.decoder.decode([batch["image"][row] for row in fast]), strict=True):
            if decoded is not None and (turn := TURNS.get(int(turns[row]))):
                decoded = self.context.device.xp.ascontiguousarray(turn(decoded))
            if decoded is not None and _has_size(decoded, sizes[row]):
                pictures[row] = decoded
        # The remaining files have another format or are broken. Pillow decodes the former and explains the latter.
        rest = [row for row, picture in enumerate(pictures) if picture is None]
        errors = list(batch["error"])
        decode = partial(decode_with_pillow, max_pixels=self.context.max_pixels)
        outcomes = self.context.device.map(decode, [batch["image"][row] for row in rest])
        for row, outcome in zip(rest, outcomes, strict=True):
            if isinstance(outcome, str):
                errors[row] = outcome
            elif not _has_size(outcome, sizes[row]):
                errors[row] = "cannot be decoded: the pixels have another size than the header says"
            else:
                pictures[row] = self.context.device.up(outcome)
        batch["pixels"] = pictures
        batch["error"] = errors
        batch["decodable"] = np.array([picture is not None for picture in pictures], np.int8)

    def vendor_part(self, batch: Batch) -> Callable[[], int] | None:
        """The codec on the files of the batch that it is given; None if it is given none."""
        files = [batch["image"][row] for row in _fast_rows(batch)]

        def run() -> int:
            self.decoder.decode(files)
            return len(files)

        return run if files else None


def _has_size(picture: Any, size: tuple[int, int]) -> bool:
    return bool(picture.shape[:2] == size)


def _fast_rows(batch: Batch) -> list[int]:
    """Returns the rows that nvImageCodec decodes as Pillow does."""
    facts = zip(batch["decode_format"], batch["pixel_mode"], batch["has_alpha"], strict=True)
    return [
        row
        for row, (kind, mode, alpha) in enumerate(facts)
        if kind in FAST_FORMATS and mode in FAST_MODES and not alpha
    ]


class Decoder(Protocol):
    """Decodes a batch of files."""

    def decode(self, files: list[bytes]) -> list[Any]:
        """Decodes files, without their orientation.

        Returns:
            One uint8 (height, width, 3) array on the device per file; None for a file it cannot decode.
        """
        ...


class CpuDecoder:
    """nvImageCodec on the CPU, with one decoder per thread of the device; its own threads do not make it faster.

    Truncated JPEG files are left to Pillow, which refuses them: nvImageCodec 0.9.0 leaks 24 KB of memory for each.
    """

    def __init__(self, device: Device) -> None:
        self.device, nvimgcodec = device, _nvimgcodec()
        self.as_stored = nvimgcodec.DecodeParams(apply_exif_orientation=False)
        self.decoders = [
            nvimgcodec.Decoder(
                device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
                backends=[nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)],
                max_num_cpu_threads=1,
            )
            for _ in range(device.threads)
        ]

    def decode(self, files: list[bytes]) -> list[np.ndarray | None]:
        pictures: list[np.ndarray | None] = [None] * len(files)
        whole = [row for row, file in enumerate(files) if not _is_truncated(file)]

        def decode_every(start: int) -> None:
            rows = whole[start :: len(self.decoders)]
            decoded = self.decoders[start].decode([files[row] for row in rows], params=self.as_stored) if rows else []
            for row, picture in zip(rows, decoded, strict=True):
                pictures[row] = None if picture is None else np.asarray(picture)

        self.device.map(decode_every, range(len(self.decoders)))
        return pictures


class GpuDecoder:
    """nvImageCodec on a GPU. nvJPEG decodes JPEG; other formats are decoded on the host and copied to the GPU.

    `fancy_upsampling` interpolates the colours of subsampled JPEG files as libjpeg does; without it, scores would
    differ between CPU and GPU. nvJPEG fills the missing part of a truncated JPEG file with grey and reports no error;
    such files are left to Pillow, which refuses them.
    """

    def __init__(self, device: Device) -> None:
        self.device, nvimgcodec = device, _nvimgcodec()
        self.as_stored = nvimgcodec.DecodeParams(apply_exif_orientation=False)
        self.decoder = nvimgcodec.Decoder(
            device_id=device.number, max_num_cpu_threads=device.threads, options=":fancy_upsampling=1"
        )

    def decode(self, files: list[bytes]) -> list[Any]:
        asarray = self.device.xp.asarray
        rows = [row for row, file in enumerate(files) if not _is_truncated(file)]
        whole = [files[row] for row in rows]
        decoded = self.decoder.decode(whole, params=self.as_stored, cuda_stream=self.device.stream) if whole else []
        found = [None if picture is None else asarray(picture) for picture in decoded]
        self.device.count_copied(sum(map(_bytes_sent, whole, found)))
        pictures: list[Any] = [None] * len(files)
        for row, picture in zip(rows, found, strict=True):
            pictures[row] = picture
        return pictures


def _is_truncated(file: bytes) -> bool:
    """Returns whether a JPEG file lacks its end marker, which coded pixels cannot contain (ITU-T T.81, B.1.1.5)."""
    return file.startswith(JPEG) and END_OF_IMAGE not in file[-END_BYTES:]


def _bytes_sent(file: bytes, picture: Any) -> int:
    """Returns the bytes copied to the GPU: the file if nvJPEG decodes it, the pixels if the host does."""
    return len(file) if file.startswith(JPEG) or picture is None else int(picture.nbytes)


def _nvimgcodec() -> Any:
    """Imports nvImageCodec when a decoder is opened: the import prints which GPU libraries are missing."""
    from nvidia import nvimgcodec

    return nvimgcodec


def open_decoder(device: Device) -> Decoder:
    """Opens the decoder of the device.

    Args:
        device: where the decoded pictures are needed.

    Returns:
        A `GpuDecoder` or a `CpuDecoder`.
    """
    return GpuDecoder(device) if device.kind == "cuda" else CpuDecoder(device)


def decode_with_pillow(data: bytes, max_pixels: int) -> np.ndarray | str:
    """Decodes a picture as `Decode` does, on the host: uint8 (height, width, 3), or a text that says why it cannot."""
    try:
        with open_picture(data, max_pixels) as opened:
            picture = ImageOps.exif_transpose(opened)
            if has_alpha(picture):
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            # 16 bits; Pillow's conversion would clip at 255. It reads PPM files with 16 bits as 32.
            if picture.mode.startswith("I;16") or (picture.mode == "I" and opened.format == "PPM"):
                return np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
            return np.asarray(picture.convert("RGB"))
    except Exception as problem:  # decoders raise many types; each is an error of this row only
        return f"cannot be decoded: {problem_of(problem)}"
