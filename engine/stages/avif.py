"""Sizes of the frames in an AVIF file, read from its boxes and from the AV1 sequence headers.

The decoder allocates memory for the coded size, which need not be the size that the file states for the picture.

Sources: ISO/IEC 14496-12 (boxes), ISO/IEC 23008-12 (`ispe`, `iloc`), the AV1 bitstream specification, 5.3 to 5.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

BRANDS = (b"avif", b"avis")
CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}
"""Boxes that hold boxes of interest → bytes in front of these."""
MAX_DEPTH = 5
"""Boxes that hold one another in moov/trak/mdia/minf/stbl, the deepest that are read."""
SEQUENCE_HEADER, TEMPORAL_DELIMITER, METADATA, PADDING = 1, 2, 5, 15
"""Types of OBUs; a sequence header can follow the others."""
START_BYTES = 4096
"""Bytes of an item that are searched for its sequence header; only short OBUs precede it."""
MAX_BOXES, MAX_ITEMS = 4096, 4096
"""Most boxes and items of a file. A picture of tiles has an item per tile, and a box per property of all of them."""

Size = tuple[int, int]


def frame_sizes(data: bytes) -> list[Size]:
    """Returns the sizes (width, height) of everything in an AVIF file that a decoder allocates memory for.

    Args:
        data: the whole file.

    Returns:
        The sizes that the file states, and those of the coded frames; none if it is not an AVIF file.

    Raises:
        ValueError: it has too many boxes or items.
    """
    if data[4:8] != b"ftyp" or data[8:12] not in BRANDS:
        return []
    boxes = list(islice(_boxes(data, 0, len(data)), MAX_BOXES + 1))
    if len(boxes) > MAX_BOXES:
        raise ValueError(f"more than {MAX_BOXES} boxes")
    embedded = next((begin for kind, begin, _ in boxes if kind == b"idat"), 0)
    sizes: list[Size] = []
    starts: list[bytes] = []
    for kind, begin, end in boxes:
        if kind == b"ispe":
            sizes.append((_number(data, begin + 4, 4), _number(data, begin + 8, 4)))
        elif kind == b"iloc":
            starts += _item_starts(data, begin, end, embedded)
        elif kind in (b"stco", b"co64"):  # of a sequence: where each of its chunks of frames begins
            width = 4 if kind == b"stco" else 8
            places = range(begin + 8, min(end, begin + 8 + MAX_ITEMS * width), width)
            starts += [
                data[at : at + START_BYTES] for place in places if (at := _number(data, place, width)) < len(data)
            ]
    return sizes + [size for start in starts if (size := _coded_size(start))]


def _number(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(data[at : at + width], "big")


def _boxes(data: bytes, at: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Yields type, first byte of the content and end of all boxes in a range, also of those in `CONTAINERS`."""
    while at + 8 <= end:
        size, kind, begin = _number(data, at, 4), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, begin = _number(data, begin, 8), begin + 8
        last = min(at + size, end) if size else end
        if last < begin:
            return
        yield kind, begin, last
        if kind in CONTAINERS and depth < MAX_DEPTH:
            yield from _boxes(data, begin + CONTAINERS[kind], last, depth + 1)
        at = last


def _item_starts(data: bytes, begin: int, end: int, embedded: int) -> Iterator[bytes]:
    """Yields the first bytes of the items that an `iloc` box lists; the content of `idat` begins at `embedded`."""
    version, widths = _number(data, begin, 1), _number(data, begin + 4, 2)
    wide = 4 if version >= 2 else 2
    offset_width, length_width, base_width, index_width = (widths >> shift & 15 for shift in (12, 8, 4, 0))
    index_width = index_width if version else 0
    count, at = _number(data, begin + 6, wide), begin + 6 + wide
    step = index_width + offset_width + length_width
    if count > MAX_ITEMS:
        raise ValueError(f"more than {MAX_ITEMS} items")
    for _ in range(count):
        if at >= end:
            return
        at += wide
        in_idat = version > 0 and _number(data, at, 2) & 15 == 1
        at += 4 if version else 2
        base, extents = _number(data, at, base_width), _number(data, at + base_width, 2)
        at += base_width + 2
        start = b""
        for place in range(at + index_width, min(at + extents * step, end), step or 1):
            offset = base + _number(data, place, offset_width) + (embedded if in_idat else 0)
            length = _number(data, place + offset_width, length_width) or START_BYTES
            start += data[offset : offset + min(length, START_BYTES - len(start))]
            if len(start) >= START_BYTES:
                break
        if not step:  # one extent, at the base
            start = data[base : base + START_BYTES]
        yield start
        at += extents * step


def _coded_size(item: bytes) -> Size | None:
    """Returns the largest frame of an AV1 bitstream by its sequence header; None if it does not begin with one."""
    at = 0
    while at + 2 <= len(item):
        kind, extended, sized = item[at] >> 3 & 15, item[at] >> 2 & 1, item[at] >> 1 & 1
        at += 1 + extended
        size = shift = 0
        while sized and at < len(item):
            byte = item[at]
            size, shift, at = size | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                break
        if kind == SEQUENCE_HEADER:
            return _largest_frame(item[at:])
        if not sized or kind not in (TEMPORAL_DELIMITER, METADATA, PADDING):
            return None
        at += size
    return None


class _Bits:
    """Reads numbers from the bits of a text, the highest bit first; zeros after its end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        shifted = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return shifted & (1 << count) - 1

    def skip_uvlc(self) -> None:
        zeros = 0
        while self._left > 0 and not self.read(1):
            zeros += 1
        self.read(min(zeros, 32))


def _largest_frame(header: bytes) -> Size:
    """Reads max_frame_width and max_frame_height of a sequence header OBU's content (AV1, 5.5.1)."""
    bits = _Bits(header[:256])
    bits.read(3 + 1)  # seq_profile, still_picture
    if bits.read(1):  # reduced_still_picture_header
        bits.read(5)  # seq_level_idx
    else:
        delay_bits = 0
        if bits.read(1):  # timing_info_present_flag
            bits.read(32 + 32)  # num_units_in_display_tick, time_scale
            if bits.read(1):  # equal_picture_interval
                bits.skip_uvlc()
            if bits.read(1):  # decoder_model_info_present_flag
                delay_bits = bits.read(5) + 1
                bits.read(32 + 5 + 5)
        display_delays = bits.read(1)
        for _ in range(bits.read(5) + 1):  # operating points
            bits.read(12)  # operating_point_idc
            if bits.read(5) > 7:  # seq_level_idx
                bits.read(1)  # seq_tier
            if delay_bits and bits.read(1):
                bits.read(2 * delay_bits + 1)
            if display_delays and bits.read(1):
                bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1
