"""Known edits of a picture, as a crawl has them: what a search for near-duplicates must find."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

Edit = Callable[[Image.Image], Image.Image | None]
"""Makes another picture of an RGB picture; None if the edit would leave it as it is."""

QUALITY = 90
"""JPEG quality of the copies whose edit is not the compression."""
MARK, MARK_OPACITY, WATERMARK_DEGREES = "© sample", 128, 30


def _scale_half(picture: Image.Image) -> Image.Image | None:
    size = picture.width // 2, picture.height // 2
    return picture.resize(size, Image.Resampling.LANCZOS) if min(size) else None


def _scale_to(picture: Image.Image, pixels: int) -> Image.Image | None:
    """Scales the longer edge to a number of pixels; smaller pictures are not enlarged."""
    if max(picture.size) <= pixels:
        return None
    return ImageOps.contain(picture, (pixels, pixels), Image.Resampling.LANCZOS)


def _crop(picture: Image.Image, share: float) -> Image.Image | None:
    """Cuts a share of width and of height off, half of it on each side."""
    x, y = (round(side * share / 2) for side in picture.size)
    box = (x, y, picture.width - x, picture.height - y)
    return picture.crop(box) if (x or y) and box[0] < box[2] and box[1] < box[3] else None


def _add_mark(picture: Image.Image) -> Image.Image:
    """Writes white text, a sixth of the width wide, into the lower right corner."""
    mark = _text(max(picture.width // 6, 1))
    return _with_mark(picture, mark, (picture.width - mark.width, picture.height - mark.height))


def _add_watermark(picture: Image.Image) -> Image.Image:
    """Writes white text across the whole picture, along a rising line."""
    mark = _text(max(picture.size)).rotate(WATERMARK_DEGREES, Image.Resampling.BILINEAR, expand=True)
    return _with_mark(picture, mark, ((picture.width - mark.width) // 2, (picture.height - mark.height) // 2))


def _text(width: int) -> Image.Image:
    """Draws the text of a mark: its opacity, mode L."""
    font = ImageFont.load_default(max(width * 0.22, 4))
    left, top, right, bottom = (round(edge) for edge in font.getbbox(MARK))
    mark = Image.new("L", (max(right - left, 1), max(bottom - top, 1)))
    ImageDraw.Draw(mark).text((-left, -top), MARK, MARK_OPACITY, font)
    return mark


def _with_mark(picture: Image.Image, mark: Image.Image, place: tuple[int, int]) -> Image.Image:
    copy = picture.copy()
    copy.paste("white", (*place, place[0] + mark.width, place[1] + mark.height), mark)
    return copy


EDITS: Mapping[str, tuple[Edit, int]] = {
    **{f"JPEG quality {quality}": (lambda picture: picture, quality) for quality in (95, 70, 50, 30)},
    "half size": (_scale_half, QUALITY),
    **{f"longer edge {pixels} px": (partial(_scale_to, pixels=pixels), QUALITY) for pixels in (320, 200)},
    **{
        f"{percent} % of width and height cut off": (partial(_crop, share=percent / 100), QUALITY)
        for percent in (5, 10, 20)
    },
    "mirrored": (ImageOps.mirror, QUALITY),
    "border of 5 %": (lambda p: ImageOps.expand(p, max(round(min(p.size) * 0.05), 1), "white"), QUALITY),
    "small mark in a corner": (_add_mark, QUALITY),
    "large watermark across": (_add_watermark, QUALITY),
    "20 % brighter": (lambda picture: ImageEnhance.Brightness(picture).enhance(1.2), QUALITY),
    "grey": (lambda picture: picture.convert("L"), QUALITY),
}
"""Kind of copy → the edit, and the JPEG quality that the copy is saved with."""


def make_copies(pixels: np.ndarray) -> list[bytes | None]:
    """Makes a JPEG copy of a picture by each edit of `EDITS`, in their order.

    Args:
        pixels: uint8 (height, width, 3), RGB.

    Returns:
        The encoded copies; None where the picture is too small for the edit.

    >>> [copy is None for copy in make_copies(np.zeros((100, 300, 3), np.uint8))].index(True) == 5  # longer edge 320
    True
    """
    picture = Image.fromarray(pixels)
    return [_encoded(edit(picture), quality) for edit, quality in EDITS.values()]


def _encoded(picture: Image.Image | None, quality: int) -> bytes | None:
    if picture is None:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
