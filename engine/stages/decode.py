"""Encoded bytes to pixels: nvImageCodec for the formats it reads, Pillow for the rest."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import produced
from danqing.engine.core.device import Device
from danqing.engine.stages.base import Context, Stage
from danqing.engine.stages.header import has_alpha

os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # a broken picture is a row's error, not a line on stderr
os.environ.setdefault("OPENCV_LOG_LEVEL", "0")

FAST_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
"""What nvImageCodec decodes. Not JPEG 2000: on the CPU, broken files bring the whole process down."""
FAST_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "I;16", "I;16B")
"""What nvImageCodec shows in the right colours: not Lab nor floating point, and no alpha, which it would drop."""


JPEG, END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
"""First and last marker of a JPEG file."""
END_BYTES = 64
"""Bytes at the end of a JPEG file in which the end-of-image marker must be: some writers append a few more."""
SMALL = 100_000
"""Pixels a picture counts for at least: so many have the models' inputs that are made of it."""


class Decode(Stage):
    """`pixels`: one uint8 (height, width, 3) RGB array of the device a row, turned by EXIF, alpha laid on white.

    White, because that is how a browser shows a transparent picture; the models' own preprocessing would drop
    alpha and show whatever colour lies below, mostly black. Of animations the first frame counts; 16 bits become 8;
    colour profiles (ICC) are not applied, as in the models' own preprocessing.
    """

    name = "decode"
    needs = ("image", "width", "height", "decode_format", "pixel_mode", "has_alpha")
    produces = produced("pixels", "decodable")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.decoder = open_decoder(context.device)

    @property
    def capacity(self) -> float:
        return self.context.memory.pixels

    @staticmethod
    def weights(batch: Batch) -> np.ndarray:
        return np.maximum(batch["width"].astype(np.int64) * batch["height"], SMALL)

    def __call__(self, batch: Batch) -> None:
        pictures: list[Any] = [None] * len(batch)
        facts = zip(batch["decode_format"], batch["pixel_mode"], batch["has_alpha"], strict=True)
        fast = [
            row
            for row, (kind, mode, alpha) in enumerate(facts)
            if kind in FAST_FORMATS and mode in FAST_MODES and not alpha
        ]
        for row, decoded in zip(fast, self.decoder.decode([batch["image"][row] for row in fast]), strict=True):
            pictures[row] = decoded
        # What is left is another format, or broken: Pillow reads the one and says what is wrong with the other.
        rest = [row for row, picture in enumerate(pictures) if picture is None]
        errors = list(batch["error"])
        outcomes = self.context.device.map(_decode_slowly, [batch["image"][row] for row in rest])
        for row, outcome in zip(rest, outcomes, strict=True):
            if isinstance(outcome, str):
                errors[row] = outcome
            else:
                pictures[row] = self.context.device.up(outcome)
        batch["pixels"] = pictures
        batch["error"] = errors
        batch["decodable"] = np.array([picture is not None for picture in pictures], np.int8)

    def vendor_part(self, batch: Batch) -> Callable[[], int]:
        """The codec on the batch's files."""
        files = batch["image"]

        def run() -> int:
            self.decoder.decode(files)
            return len(files)

        return run


class Decoder(Protocol):
    def decode(self, files: list[bytes]) -> list[Any]:
        """Encoded pictures to uint8 (height, width, 3) arrays of the device; None for what cannot be read."""
        ...


class CpuDecoder:
    """nvImageCodec on the CPU, a decoder a thread: threads of its own make it no faster."""

    def __init__(self, device: Device) -> None:
        self.device, nvimgcodec = device, _nvimgcodec()
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

        def decode_every(start: int) -> None:
            rows = range(start, len(files), len(self.decoders))
            decoded = self.decoders[start].decode([files[row] for row in rows]) if rows else []
            for row, picture in zip(rows, decoded, strict=True):
                pictures[row] = None if picture is None else np.asarray(picture)

        self.device.map(decode_every, range(len(self.decoders)))
        return pictures


class GpuDecoder:
    """nvImageCodec on a GPU: JPEG by nvJPEG, what it has no GPU codec for on the host and copied up; pixels stay there.

    Colours of subsampled JPEG files are interpolated as libjpeg does it (`fancy_upsampling`), or the scores of the two
    devices would drift apart. nvJPEG fills the missing part of a JPEG file that is cut off with grey and reports no
    error; such files are left to Pillow, which refuses them.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.decoder = _nvimgcodec().Decoder(
            device_id=device.number, max_num_cpu_threads=device.threads, options=":fancy_upsampling=1"
        )

    def decode(self, files: list[bytes]) -> list[Any]:
        asarray = self.device.xp.asarray
        rows = [row for row, file in enumerate(files) if not _is_cut_off(file)]
        whole = [files[row] for row in rows]
        decoded = self.decoder.decode(whole, cuda_stream=self.device.stream) if whole else []
        found = [None if picture is None else asarray(picture) for picture in decoded]
        self.device.sent(sum(map(_bytes_sent, whole, found)))
        pictures: list[Any] = [None] * len(files)
        for row, picture in zip(rows, found, strict=True):
            pictures[row] = picture
        return pictures


def _is_cut_off(file: bytes) -> bool:
    """Whether a JPEG file lacks its end-of-image marker. Coded pixels never contain these two bytes (ITU-T T.81,
    B.1.1.5)."""
    return file.startswith(JPEG) and END_OF_IMAGE not in file[-END_BYTES:]


def _bytes_sent(file: bytes, picture: Any) -> int:
    """Bytes that decoding copies to the GPU: the file if nvJPEG decodes it, the pixels if the host decodes it."""
    return len(file) if file.startswith(JPEG) or picture is None else int(picture.nbytes)


def _nvimgcodec() -> Any:
    """Imported when a decoder is opened, inside a run: it prints which GPU libraries it does not find."""
    from nvidia import nvimgcodec

    return nvimgcodec


def open_decoder(device: Device) -> Decoder:
    """The decoder of the device."""
    return GpuDecoder(device) if device.kind == "cuda" else CpuDecoder(device)


def _decode_slowly(data: bytes) -> np.ndarray | str:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = ImageOps.exif_transpose(opened)
            if has_alpha(picture):
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            if picture.mode.startswith("I"):  # 16 bits; Pillow's own conversion would cut off at 255
                return np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
            return np.asarray(picture.convert("RGB"))
    except Exception as problem:  # decoders raise many kinds; any of them costs this row only
        return f"cannot be decoded: {problem}"
