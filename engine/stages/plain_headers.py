"""Reads headers of plain JPEG, PNG and WebP files in a few microseconds.

`PIL.Image.open` takes 30 to 120 µs a picture, during which it holds the interpreter's lock; for WebP it allocates the
whole canvas. These readers return a result only if it is certain to equal Pillow's: every segment before the pixels is
of a kind listed here, complete, and has the length in its standard. For everything else they return None and Pillow
reads the file: EXIF and XMP (orientation), CMYK, animation, 12 and 16 bits, several pictures, broken or unknown files.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

Table = bytes | tuple[int, ...]
"""The 64 entries of a JPEG's quantisation table, in the order of the file (zigzag)."""


class Facts(NamedTuple):
    """Contents of a picture's header.

    Attributes:
        format: Pillow's name of the format; None if the header could not be read.
        mode: Pillow's name of the pixel type.
        width, height: in pixels, with the orientation applied.
        alpha: whether some pixel can be transparent.
        animated: whether there is more than one frame.
        luminance: a JPEG's first quantisation table; None for other formats.
        error: why the header could not be read.
    """

    format: str | None = None
    mode: str = ""
    width: int = 0
    height: int = 0
    alpha: bool = False
    animated: bool = False
    luminance: Table | None = None
    error: str | None = None


def read_plain_header(data: bytes) -> Facts | None:
    """Reads the header of a plain JPEG, PNG or WebP file; None for every other file, broken ones included."""
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
            return _png(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
    except IndexError:  # the file ends within its header
        pass
    return None


SOF = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive; Huffman-coded
DQT, SOS, APP0, APP2, APP14 = 0xDB, 0xDA, 0xE0, 0xE2, 0xEE
SKIPPED = frozenset((0xC4, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF))
"""DHT, DRI, comments, and application segments that Pillow does not read."""
JPEG_MODES = {1: "L", 3: "RGB"}


def _jpeg(data: bytes) -> Facts | None:
    mode, width, height = "", 0, 0
    luminance, first_table = None, 16
    at = 2
    while data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        end = at + 2 + length
        if marker in SKIPPED:
            if length < 2:
                return None
        elif marker == DQT:
            at += 4
            while at < end:
                number = data[at]
                if number > 15:  # 16-bit entries
                    return None
                if number <= first_table:
                    luminance, first_table = data[at + 1 : at + 65], number
                at += 65
            if at != end:
                return None
        elif marker in SOF:
            layers = data[at + 9]
            if mode or layers not in JPEG_MODES or data[at + 4] != 8 or length != 8 + 3 * layers:
                return None
            mode = JPEG_MODES[layers]
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
        elif marker == SOS:
            if end > len(data) or not width or not height or luminance is None:
                return None
            return Facts("JPEG", mode, width, height, luminance=luminance)
        elif marker in (APP0, APP14):
            if length < 14:  # Pillow reads numbers from JFIF and Adobe segments
                return None
        elif marker != APP2 or data[at + 4 : at + 16] != b"ICC_PROFILE\0" or length < 16:
            return None
        at = end
    return None


PNG_MODES = {
    (1, 0): "1", (8, 0): "L", (8, 2): "RGB", (1, 3): "P", (2, 3): "P", (4, 3): "P", (8, 3): "P", (8, 4): "LA",
    (8, 6): "RGBA",
}  # fmt: skip
"""Bits a sample and colour type → mode."""
TRANSPARENT_BYTES = {"1": 2, "L": 2, "RGB": 6, "P": 0}
"""Mode → least length of its tRNS chunk. In other modes the chunk has no meaning."""
PNG_CHUNKS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7, b"sBIT": None, b"bKGD": None, b"PLTE": None}
"""Chunks that change no fact, and their length where Pillow reads numbers from them."""


def _png(data: bytes) -> Facts | None:
    mode = PNG_MODES.get((data[24], data[25]))
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if mode is None or not width or not height or data[27] or not _sound_chunk(data, 8, 13):
        return None
    alpha = mode in ("LA", "RGBA")
    at = 33
    while (kind := data[at + 4 : at + 8]) != b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        if kind == b"tRNS":
            if length < TRANSPARENT_BYTES.get(mode, 0):
                return None
            alpha = alpha or mode in TRANSPARENT_BYTES
        elif kind in PNG_CHUNKS:
            if PNG_CHUNKS[kind] not in (None, length):
                return None
        elif kind != b"tEXt" or length > 1000 or data[at + 8 : at + 17] != b"Software\0":
            return None
        if not _sound_chunk(data, at, length):
            return None
        at += 12 + length
    return Facts("PNG", mode, width, height, alpha)


def _sound_chunk(data: bytes, at: int, length: int) -> bool:
    end = at + 8 + length
    return zlib.crc32(data[at + 4 : end]) == int.from_bytes(data[end : end + 4], "big") and end + 4 <= len(data)


ICC_FLAG, ALPHA_FLAG = 0x20, 0x10


def _webp(data: bytes) -> Facts | None:
    if int.from_bytes(data[4:8], "little") + 8 != len(data):
        return None
    at, canvas, flags, alpha = 12, None, None, False
    if data[12:16] == b"VP8X":
        flags = data[20]
        if data[16:20] != b"\x0a\0\0\0" or flags & ~(ICC_FLAG | ALPHA_FLAG) or data[21:24] != b"\0\0\0":
            return None
        canvas = int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        at = 30
        if flags & ICC_FLAG:
            if data[at : at + 4] != b"ICCP":
                return None
            at = _next_chunk(data, at)
        if data[at : at + 4] == b"ALPH":
            at, alpha = _next_chunk(data, at), True
    kind, begin, size = data[at : at + 4], at + 8, int.from_bytes(data[at + 4 : at + 8], "little")
    if _next_chunk(data, at) != len(data):
        return None
    if kind == b"VP8 ":
        tag = int.from_bytes(data[begin : begin + 3], "little")
        # A key frame (bit 0 clear) of version 0 to 3 that is shown (bit 4); the rest is its first partition's size.
        if data[begin + 3 : begin + 6] != b"\x9d\x01\x2a" or tag & 0x19 != 0x10 or tag >> 5 >= size:
            return None
        sides = int.from_bytes(data[begin + 6 : begin + 10], "little")
        width, height = sides & 0x3FFF, sides >> 16 & 0x3FFF
    elif kind == b"VP8L" and not alpha:
        bits = int.from_bytes(data[begin + 1 : begin + 5], "little")
        if data[begin] != 0x2F or bits >> 29 or size < 5:
            return None
        width, height, alpha = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
    else:
        return None
    if not width or not height:
        return None
    if flags is not None and (canvas != (width, height) or alpha != bool(flags & ALPHA_FLAG)):
        return None
    return Facts("WEBP", "RGBA" if alpha else "RGB", width, height, alpha)


def _next_chunk(data: bytes, at: int) -> int:
    """Offset of the chunk after the one at `at`."""
    size = int.from_bytes(data[at + 4 : at + 8], "little")
    return at + 8 + size + (size & 1)
