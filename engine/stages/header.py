"""What a picture's header says, before a single pixel is decoded."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from engine.batch import Batch
from engine.stages.base import Stage

Image.MAX_IMAGE_PIXELS = None  # our own --max-pixels says it per row; Pillow's would warn and raise


LARGEST = 2**31 - 1
"""Sides are stored as int32; what claims more is a bomb anyway."""


class Facts(NamedTuple):
    """What a header says, or why it says nothing."""

    format: str | None = None
    mode: str = ""
    width: int = 0
    height: int = 0
    alpha: bool = False
    error: str | None = None


class Header(Stage):
    """`readable`, size and format; `aspect_ratio` (width / height) and `shortest_edge` (pixels) follow.

    Turned pictures (EXIF orientation) count with the sides as they are shown. `pixel_mode` is Pillow's name for what
    the file holds (RGB, P, CMYK, I;16 …).
    """

    name = "header"
    needs = ("image",)
    produces = {
        "readable": pa.int8(),
        "width": pa.int32(),
        "height": pa.int32(),
        "aspect_ratio": pa.float64(),
        "shortest_edge": pa.int32(),
        "decode_format": pa.string(),
        "has_alpha": pa.bool_(),
        "pixel_mode": None,
    }

    def __call__(self, batch: Batch) -> None:
        headers = [self._read(image) for image in batch["image"]]
        sizes = np.array([(header.width, header.height) for header in headers], np.int32).reshape(-1, 2)
        readable = np.array([header.error is None for header in headers])
        with np.errstate(divide="ignore", invalid="ignore"):
            batch["aspect_ratio"] = np.where(readable, sizes[:, 0] / sizes[:, 1].astype(np.float64), np.nan)
        batch["readable"] = readable.astype(np.int8)
        batch["width"], batch["height"] = sizes[:, 0], sizes[:, 1]
        batch["shortest_edge"] = sizes.min(1)
        batch["decode_format"] = [header.format for header in headers]
        batch["pixel_mode"] = [header.mode for header in headers]
        batch["has_alpha"] = np.array([header.alpha for header in headers], bool)
        batch["error"] = [header.error or before for header, before in zip(headers, batch["error"], strict=True)]

    def _read(self, data: bytes) -> Facts:
        if not data:
            return Facts(error="no picture")
        try:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                if _lies_on_its_side(image):
                    width, height = height, width
                alpha = has_alpha(image)
                bomb = width * height > self.context.max_pixels
                error = f"{width}×{height} pixels, more than --max-pixels" if bomb else None
                width, height = min(width, LARGEST), min(height, LARGEST)
                return Facts(image.format, image.mode, width, height, alpha, error)
        except UnidentifiedImageError:
            return Facts(error=f"not a picture: {describe(data)}")
        except Exception as problem:  # Pillow's parsers raise many kinds; any of them costs this row only
            return Facts(error=f"unreadable header: {problem}")


def has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _lies_on_its_side(image: Image.Image) -> bool:
    if image.format == "TIFF":
        return False  # Pillow has turned the size already
    if image.format == "PNG" and "exif" not in image.info:
        return False  # Pillow would decode the whole picture to look for a chunk at its end
    return image.getexif().get(0x0112, 1) in (5, 6, 7, 8)


def describe(data: bytes) -> str:
    """What a file that is no picture seems to be."""
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    for magic, name in ((b"%pdf", "a PDF"), (b"pk\x03\x04", "a ZIP archive"), (b"<svg", "SVG"), (b"<?xml", "XML")):
        if head.startswith(magic):
            return name
    return f"{len(data)} bytes starting with {data[:8].hex(' ')}"
