"""Reads headers of plain JPEG, PNG and WebP files in a few microseconds.

`PIL.Image.open` takes 30 to 120 µs per picture, during which it holds the interpreter's lock; for WebP it allocates the
whole canvas. These readers return a result only if it is certain to equal Pillow's: every segment before the pixels is
of a kind listed here, complete, and has the length in its standard. For everything else they return None and Pillow
reads the file: EXIF and XMP (orientation), CMYK, animation, 12 and 16 bits, several pictures, broken or unknown files.

Sources: ITU-T T.81 (JPEG), ISO/IEC 15948 (PNG), RFC 9649 (WebP), RFC 6386 (VP8).
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

Table = bytes | tuple[int, ...]
"""The 64 entries of a quantisation table of a JPEG file, in the order of the file (zigzag)."""


class Facts(NamedTuple):
    """Fields of a picture's header.

    Attributes:
        format: Pillow's name of the format; None if the header could not be read.
        mode: Pillow's name of the pixel type.
        width, height: in pixels, with the orientation applied.
        alpha: whether some pixel can be transparent.
        animated: whether there is more than one frame.
        luminance: the quantisation table of a JPEG file with the lowest number; None for other formats.
        orientation: EXIF's, 1 to 8, still to be applied to the decoded pixels.
        error: why the header could not be read.
    """

    format: str | None = None
    mode: str = ""
    width: int = 0
    height: int = 0
    alpha: bool = False
    animated: bool = False
    luminance: Table | None = None
    orientation: int = 1
    error: str | None = None


def read_plain_header(data: bytes) -> Facts | None:
    """Reads the header of a plain JPEG, PNG or WebP file.

    Args:
        data: the whole file.

    Returns:
        What the header says; None if the file is not plain, or broken.
    """
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
"""Number of components → mode."""


def _jpeg(data: bytes) -> Facts | None:
    frame: tuple[str, int, int] | None = None
    tables: dict[int, bytes] = {}
    at = 2
    while data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        end = at + 2 + length
        if marker in SKIPPED:
            if length < 2:
                return None
        elif marker == DQT:
            more = _jpeg_tables(data, at + 4, end)
            if more is None:
                return None
            tables.update(more)
        elif marker in SOF:
            frame = None if frame else _jpeg_frame(data, at, length)
            if frame is None:
                return None
        elif marker == SOS:
            if frame is None or not tables or end > len(data):
                return None
            return Facts("JPEG", *frame, luminance=tables[min(tables)])
        elif marker in (APP0, APP14):
            if length < 14:  # Pillow reads numbers from JFIF and Adobe segments
                return None
        elif marker != APP2 or data[at + 4 : at + 16] != b"ICC_PROFILE\0" or length < 16:
            return None
        at = end
    return None


def _jpeg_tables(data: bytes, at: int, end: int) -> dict[int, bytes] | None:
    """Reads the quantisation tables of a segment, number → entries; None if entries have 16 bits or are missing."""
    tables: dict[int, bytes] = {}
    while at < end:
        if data[at] > 15:  # 16-bit entries
            return None
        tables[data[at]] = data[at + 1 : at + 65]
        at += 65
    return tables if at == end else None


def _jpeg_frame(data: bytes, at: int, length: int) -> tuple[str, int, int] | None:
    """Reads mode, width and height of the frame header at `at`; None if it is not plain."""
    components = data[at + 9]
    height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
    if components not in JPEG_MODES or data[at + 4] != 8 or length != 8 + 3 * components or not width or not height:
        return None
    return JPEG_MODES[components], width, height


PNG_MODES = {
    (1, 0): "1", (8, 0): "L", (8, 2): "RGB", (1, 3): "P", (2, 3): "P", (4, 3): "P", (8, 3): "P", (8, 4): "LA",
    (8, 6): "RGBA",
}  # fmt: skip
"""(bits per sample, colour type) → mode."""
TRANSPARENT_BYTES = {"1": 2, "L": 2, "RGB": 6, "P": 0}
"""Mode → smallest length of its tRNS chunk. In other modes the chunk has no meaning."""
PNG_CHUNKS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7, b"sBIT": None, b"bKGD": None, b"PLTE": None}
"""Chunks that change no fact → their length if Pillow reads numbers from them, else None."""


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
    return None if has_late_orientation(data, at) else Facts("PNG", mode, width, height, alpha)


CHUNK_START = struct.Struct(">I4s")
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
ORIENTING_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
"""Keywords of the texts in which Pillow looks for an orientation."""


def has_late_orientation(data: bytes, at: int = 8) -> bool:
    """Returns whether a chunk after the pixels of a PNG file can hold the orientation.

    Args:
        data: the whole file.
        at: offset of a chunk in front of the pixels, or of the first one with pixels.
    """
    chunk = CHUNK_START.unpack_from
    try:
        length, kind = chunk(data, at)
        while kind != b"IDAT" and kind != b"IEND":
            at += 12 + length
            length, kind = chunk(data, at)
        while kind == b"IDAT":
            at += 12 + length
            length, kind = chunk(data, at)
        while kind != b"IEND":
            if kind == b"eXIf" or (kind in PNG_TEXTS and data.startswith(ORIENTING_TEXTS, at + 8)):
                return True
            at += 12 + length
            length, kind = chunk(data, at)
    except struct.error:  # the end of the file
        pass
    return False


def _sound_chunk(data: bytes, at: int, length: int) -> bool:
    """Returns whether the chunk at `at` is complete and has the right checksum."""
    end = at + 8 + length
    return zlib.crc32(data[at + 4 : end]) == int.from_bytes(data[end : end + 4], "big") and end + 4 <= len(data)


ICC_FLAG, ALPHA_FLAG = 0x20, 0x10


def _webp(data: bytes) -> Facts | None:
    if int.from_bytes(data[4:8], "little") + 8 != len(data):
        return None
    at, canvas, flags, alpha = 12, None, 0, False
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
    if _next_chunk(data, at) != len(data):
        return None
    kind, begin, size = data[at : at + 4], at + 8, int.from_bytes(data[at + 4 : at + 8], "little")
    sides = None
    if kind == b"VP8 ":
        sides = _vp8_sides(data, begin, size)
    elif kind == b"VP8L" and not alpha:
        bits = int.from_bytes(data[begin + 1 : begin + 5], "little")
        if data[begin] == 0x2F and not bits >> 29 and size >= 5:
            sides, alpha = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), bool(bits >> 28 & 1)
    if sides is None or (canvas and (canvas != sides or alpha != bool(flags & ALPHA_FLAG))):
        return None
    return Facts("WEBP", "RGBA" if alpha else "RGB", *sides, alpha)


def _vp8_sides(data: bytes, begin: int, size: int) -> tuple[int, int] | None:
    """Reads width and height of a VP8 bitstream of `size` bytes; None if it is not a plain key frame."""
    tag = int.from_bytes(data[begin : begin + 3], "little")
    # A key frame (bit 0 clear) of version 0 to 3 that is shown (bit 4); the rest is its first partition's size.
    if data[begin + 3 : begin + 6] != b"\x9d\x01\x2a" or tag & 0x19 != 0x10 or tag >> 5 >= size:
        return None
    sides = int.from_bytes(data[begin + 6 : begin + 10], "little")
    width, height = sides & 0x3FFF, sides >> 16 & 0x3FFF
    return (width, height) if width and height else None


def _next_chunk(data: bytes, at: int) -> int:
    """Returns the offset of the chunk after the one at `at`."""
    size = int.from_bytes(data[at + 4 : at + 8], "little")
    return at + 8 + size + (size & 1)
