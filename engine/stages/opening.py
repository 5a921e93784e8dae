"""Opens encoded pictures with Pillow: formats of the web, and no picture that takes more memory than allowed."""

from __future__ import annotations

import io
import re
import threading
import warnings
from functools import cache

from PIL import Image, UnidentifiedImageError

from danqing.engine.stages.avif import frame_sizes

warnings.filterwarnings("ignore", module=r"PIL\.")  # about broken headers, which are errors of their rows

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "JPEG2000", "ICO", "PPM")
"""Formats that are opened, by Pillow's names (MPO is a JPEG). Others may run a program (EPS: Ghostscript), or are
recognised by so few bytes that files of other kinds pass for them (TGA, PCX)."""
TILE_WIDTH, TILE_LENGTH = 322, 323
"""Tags of TIFF."""
SIZ = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 codestream: the SIZ segment comes first (ITU-T T.800, A.5.1)."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

_LOCK = threading.Lock()
"""Pillow's limit is a variable of its module."""


class TooManyPixelsError(ValueError):
    """A picture has more pixels than allowed."""


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF is missing before Pillow 11.3


def open_picture(data: bytes, max_pixels: int) -> Image.Image:
    """Opens an encoded picture. Pixels are decoded when they are used, those of ICO at once.

    Args:
        data: the whole file.
        max_pixels: maximum number of pixels of the picture, and of a tile, frame, canvas or embedded picture in it, for
            which a decoder allocates memory.

    Raises:
        TooManyPixelsError: it has more.
        UnidentifiedImageError: the file is not a picture of `FORMATS`.
        Exception: the header is broken; Pillow's parsers raise many types.
    """
    formats = _formats()
    for size in (_canvas(data), *frame_sizes(data)):
        _check(*size, max_pixels)
    try:
        with _LOCK:
            # Pillow refuses more than twice this number wherever it allocates memory for pixels.
            Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
            picture = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:  # the message holds a memory address
        raise UnidentifiedImageError("not a picture that can be opened") from None
    except Image.DecompressionBombError as problem:
        found = re.search(r"\d+", str(problem))
        raise TooManyPixelsError(f"{found[0] if found else 'too many'} pixels, more than --max-pixels") from None
    try:
        _check(*picture.size, max_pixels)
        _check(*_largest_part(picture, data), max_pixels)
    except TooManyPixelsError:
        picture.close()
        raise
    return picture


def too_many_pixels(width: int, height: int) -> str:
    """Returns the message about a picture of more pixels than allowed."""
    return f"{width}×{height} pixels, more than --max-pixels"


def problem_of(problem: Exception) -> str:
    """Returns the message of a decoder's exception, without addresses of objects, which differ from run to run.

    >>> problem_of(OSError("cannot read <_io.BytesIO object at 0x7f79381e36a0>"))
    'cannot read <_io.BytesIO object>'
    """
    return _ADDRESS.sub("", str(problem))


def _check(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooManyPixelsError(too_many_pixels(width, height))


def _canvas(data: bytes) -> tuple[int, int]:
    """Returns the size of a WebP file's canvas, which Pillow allocates when it opens the file; else (0, 0)."""
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8X":
        return 0, 0
    return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1


def _largest_part(picture: Image.Image, data: bytes) -> tuple[int, int]:
    """Returns the size of a TIFF's tiles, or of a JPEG 2000 codestream: both need not be that of the picture."""
    if picture.format == "TIFF":
        tags = picture.tag_v2  # type: ignore[attr-defined]
        width, length = tags.get(TILE_WIDTH, 0), tags.get(TILE_LENGTH, 0)
        return (int(width), int(length)) if isinstance(width, int) and isinstance(length, int) else (0, 0)
    at = data.find(SIZ) if picture.format == "JPEG2000" else -1
    if at < 0:
        return 0, 0
    x_end, y_end, x_start, y_start = (int.from_bytes(data[at + n : at + n + 4], "big") for n in range(8, 24, 4))
    return max(x_end - x_start, 0), max(y_end - y_start, 0)
