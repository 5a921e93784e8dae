"""What a picture's header says, before a single pixel is decoded."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from engine.batch import Batch
from engine.stages.base import Stage

Image.MAX_IMAGE_PIXELS = None  # our own --max-pixels says it per row; Pillow's would warn and raise


class Header(Stage):
    """`readable`, size and format; `aspect_ratio` (width / height) and `shortest_edge` (pixels) follow.

    Turned pictures (EXIF orientation) count with the sides as they are shown.
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
    }

    def __call__(self, batch: Batch) -> None:
        headers = [self._read(image) for image in batch["image"]]
        sizes = np.array([(w, h) for _, w, h, _, _ in headers], np.int32).reshape(-1, 2)
        readable = np.array([error is None for *_, error in headers])
        with np.errstate(divide="ignore", invalid="ignore"):
            batch["aspect_ratio"] = np.where(readable, sizes[:, 0] / sizes[:, 1].astype(np.float64), np.nan)
        batch["readable"] = readable.astype(np.int8)
        batch["width"], batch["height"] = sizes[:, 0], sizes[:, 1]
        batch["shortest_edge"] = sizes.min(1)
        batch["decode_format"] = [fmt for fmt, *_ in headers]
        batch["has_alpha"] = np.array([alpha for *_, alpha, _ in headers], bool)
        batch["error"] = [error or before for (*_, error), before in zip(headers, batch["error"], strict=True)]

    def _read(self, data: bytes) -> tuple[str | None, int, int, bool, str | None]:
        if not data:
            return None, 0, 0, False, "no picture"
        try:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                if _lies_on_its_side(image):
                    width, height = height, width
                alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
                if width * height > self.context.max_pixels:
                    return image.format, width, height, alpha, f"{width}×{height} pixels, more than --max-pixels"
                return image.format, width, height, alpha, None
        except UnidentifiedImageError:
            return None, 0, 0, False, f"not a picture: {describe(data)}"
        except Exception as problem:  # Pillow's parsers raise many kinds; any of them costs this row only
            return None, 0, 0, False, f"unreadable header: {problem}"


def _lies_on_its_side(image: Image.Image) -> bool:
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
