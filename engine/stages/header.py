"""Reads the header of a picture: format, size, pixel type. No pixel is decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import produced
from danqing.engine.core.memory import DEFAULT_MAX_PIXELS
from danqing.engine.stages.base import Stage
from danqing.engine.stages.opening import TooManyPixelsError, open_picture, problem_of, too_many_pixels
from danqing.engine.stages.plain_headers import Facts, Table, has_late_orientation, read_plain_header

MAX_SIDE = 2**31 - 1
"""Sides are stored as int32. A header that claims more exceeds --max-pixels."""
ORIENTATION, ORIENTATIONS = 0x0112, range(1, 9)
"""The tag of EXIF, and its values; from 5 on, width and height are exchanged."""


class Header(Stage):
    """`readable`, `decode_format` and size, and what follows from them.

    - `width`, `height`, `shortest_edge`: pixels, with the EXIF orientation applied. `aspect_ratio`: width / height.
    - `pixel_mode`: Pillow's name of the pixel type in the file (RGB, P, CMYK, I;16 …).
    - `orientation`: EXIF's, 1 to 8, as Pillow finds it (EXIF, else XMP).
    - `animated`: whether there are further frames; only the first is decoded.
    - `jpeg_quality`: libjpeg's quality, 1 to 100, estimated; 100 for other formats.
    """

    name = "header"
    needs = ("image",)
    produces = produced(
        "readable", "width", "height", "aspect_ratio", "shortest_edge", "decode_format", "has_alpha",
        "animated", "jpeg_quality", "pixel_mode", "orientation",
    )  # fmt: skip

    def __call__(self, batch: Batch) -> None:
        max_pixels = self.context.max_pixels
        headers = [read_header(image, max_pixels) for image in batch["image"]]
        errors = [header.error for header in headers]
        sizes = np.array([(min(h.width, MAX_SIDE), min(h.height, MAX_SIDE)) for h in headers], np.int32).reshape(-1, 2)
        readable = np.array([error is None for error in errors], bool)
        with np.errstate(divide="ignore", invalid="ignore"):
            batch["aspect_ratio"] = np.where(readable, sizes[:, 0] / sizes[:, 1].astype(np.float64), np.nan)
        batch["readable"] = readable.astype(np.int8)
        batch["width"], batch["height"] = sizes[:, 0], sizes[:, 1]
        batch["shortest_edge"] = sizes.min(1)
        batch["decode_format"] = [header.format for header in headers]
        batch["pixel_mode"] = [header.mode for header in headers]
        batch["orientation"] = np.array([header.orientation for header in headers], np.int8)
        batch["has_alpha"] = np.array([header.alpha for header in headers], bool)
        batch["animated"] = np.array([header.animated for header in headers], bool)
        batch["jpeg_quality"] = jpeg_qualities(headers)
        batch["error"] = [error or before for error, before in zip(errors, batch["error"], strict=True)]


def read_header(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> Facts:
    """Reads the header of an encoded picture.

    Args:
        data: the whole file.
        max_pixels: larger pictures have an error.

    Returns:
        The facts; if the header cannot be read, only `error` is set.
    """
    if not data:
        return Facts(error="no picture")
    facts = read_plain_header(data)
    if facts is None:
        return ask_pillow(data, max_pixels)
    if facts.width * facts.height > max_pixels:
        return facts._replace(error=too_many_pixels(facts.width, facts.height))
    return facts


def ask_pillow(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> Facts:
    """Reads the header with Pillow, which supports every format; see `read_header`."""
    try:
        with open_picture(data, max_pixels) as image:
            (width, height), orientation = image.size, _orientation(image, data)
            turned = orientation >= 5
            if image.format == "TIFF":  # Pillow turns the pixels itself, and has turned the size by the tag
                tag = image.tag_v2.get(ORIENTATION)  # type: ignore[attr-defined]
                turned, orientation = turned != (tag in ORIENTATIONS[4:]), 1
            if turned:
                width, height = height, width
            facts = Facts(
                image.format, image.mode, width, height, has_alpha(image), _is_animated(image), orientation=orientation
            )
            tables = getattr(image, "quantization", None)
            if image.format == "JPEG" and tables:
                facts = facts._replace(luminance=tuple(tables[min(tables)][entry] for entry in ZIGZAG))
            return facts
    except UnidentifiedImageError:
        return Facts(error=f"not a picture: {describe(data)}")
    except TooManyPixelsError as problem:
        return Facts(error=str(problem))
    except Exception as problem:  # Pillow's parsers raise many types; each is an error of this row only
        return Facts(error=f"unreadable header: {problem_of(problem)}")


def has_alpha(image: Image.Image) -> bool:
    """Returns whether some pixel can be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _is_animated(image: Image.Image) -> bool:
    try:  # an error in a later frame does not make the first one unreadable
        return image.format in ("GIF", "PNG", "WEBP", "AVIF") and bool(getattr(image, "is_animated", False))
    except Exception:
        return False


def jpeg_qualities(headers: Sequence[Facts]) -> np.ndarray:
    """Estimates the JPEG quality of each file from its luminance table.

    The estimate is the quality whose table in libjpeg is nearest (sum of absolute differences), and exact if libjpeg
    wrote the file. Files of one origin share their table, so each distinct table is compared once.

    Returns:
        int16 (headers,): 1 to 100; 100 for formats other than JPEG, 0 if the header could not be read.
    """
    known: dict[Table | None, int] = {None: 100}
    if distinct := list(dict.fromkeys(header.luminance for header in headers if header.luminance is not None)):
        difference = np.abs(np.array([*map(tuple, distinct)], np.int32)[:, None] - JPEG_TABLES).sum(2)
        known |= zip(distinct, (difference.argmin(1) + 1).tolist(), strict=True)
    return np.array([known[header.luminance] if header.error is None else 0 for header in headers], np.int16)


def _zigzag() -> list[int]:
    """Lists the position in the 8 × 8 block, in row order, of each table entry of a JPEG file (T.81, figure 5)."""
    places = [(row, column) for row in range(8) for column in range(8)]

    def diagonally(place: tuple[int, int]) -> tuple[int, int]:
        row, column = place
        return row + column, row if (row + column) % 2 else column

    return [8 * row + column for row, column in sorted(places, key=diagonally)]


ZIGZAG = _zigzag()


def _jpeg_tables() -> np.ndarray:
    """Makes libjpeg's luminance table for every quality from 1 to 100: int32 (100, 64), entries in zigzag order.

    This is the table of ITU-T T.81, Annex K, scaled as by jpeg_quality_scaling and jpeg_add_quant_table (jcparam.c).
    """
    standard = np.array(
        [
            16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
            14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
            49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
        ]
    )  # fmt: skip
    quality = np.arange(1, 101)[:, None]
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return ((standard * percent + 50) // 100).clip(1, 255).astype(np.int32)[:, ZIGZAG]


JPEG_TABLES = _jpeg_tables()


def _orientation(image: Image.Image, data: bytes) -> int:
    """Returns the orientation that `ImageOps.exif_transpose` applies, 1 to 8."""
    if image.format == "PNG" and has_late_orientation(data):
        image.load()
    # PngImageFile.getexif decodes the whole picture to find a chunk after the pixels.
    found = Image.Image.getexif(image).get(ORIENTATION, 1)
    return int(found) if found in ORIENTATIONS else 1


def describe(data: bytes) -> str:
    """Says what a file that is not a picture seems to be."""
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if data[4:11] == b"ftyphei":
        return "HEIC"
    for magic, name in (
        (b"%pdf", "a PDF"), (b"%!ps", "PostScript"), (b"8bps", "a Photoshop file"),
        (b"pk\x03\x04", "a ZIP archive"), (b"<svg", "SVG"), (b"<?xml", "XML"),
    ):  # fmt: skip
        if head.startswith(magic):
            return name
    return f"{len(data)} bytes starting with {data[:8].hex(' ')}"
