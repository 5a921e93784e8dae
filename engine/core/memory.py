"""Bounds on the memory of the batches that are in flight during SCORE."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from danqing.engine.core.batch_sizes import BATCH_SIZES
from danqing.engine.core.errors import DanqingError

BATCHES_IN_FLIGHT = 11
"""Maximum number of encoded-image batches in flight, over all threads (`engine.score.loop`)."""
DECODE_BYTES_PER_PIXEL = 18
"""Peak bytes per pixel during decoding: Pillow composites an image with alpha onto white. Other images need 3."""
RUNTIME_RESERVE_BYTES = 256 << 20
"""Memory that runtimes allocate when they process the first rows."""
MIN_ENCODED_BYTES = 4 << 20
"""Smallest bound on the encoded bytes of a batch. Larger files can exceed the memory limit."""
MAX_SIZE = 1 << 60
"""Sizes from here on are typing errors."""
DEFAULT_MAX_PIXELS = 178_956_970
"""Pictures with more pixels are refused: Pillow's limit for decompression bombs, 2 × `PIL.Image.MAX_IMAGE_PIXELS`."""
TEXT_COPIES = 4
"""Copies of a caption's UTF-8 while its row is in flight: as read and cleaned, and both again while rows are packed."""


@dataclass
class Memory:
    """Bounds of a batch. A row that exceeds a bound gets a batch of its own.

    The defaults are those of a CPU without a limit.

    Attributes:
        limit: bytes of resident memory that the process must not exceed; None: no limit.
        max_pixels: pixels of the largest picture that is decoded.
        encoded: bound on the bytes of encoded pictures, captions and metadata in a batch.
        pixels: bound on the decoded pixels in a batch.
    """

    limit: int | None = None
    max_pixels: int = 0
    encoded: int = BATCH_SIZES["cpu"].encoded_bytes
    pixels: int = BATCH_SIZES["cpu"].pixels

    @classmethod
    def of(cls, kind: str, limit: int | None, max_pixels: int) -> Memory:
        """Makes the bounds for a kind of device, `cpu` or `cuda`."""
        sizes = BATCH_SIZES[kind]
        return cls(limit, max_pixels, sizes.encoded_bytes, sizes.pixels)

    def settle(self) -> None:
        """Lowers the bounds so that the process keeps to its limit. Call it when all models are open.

        Raises:
            DanqingError: the limit is too low for the largest picture; the message names one that suffices.
        """
        if self.limit is None:
            return
        import psutil  # here, because every command imports this module for its options

        in_use = psutil.Process().memory_info().rss + RUNTIME_RESERVE_BYTES
        largest = DECODE_BYTES_PER_PIXEL * self.max_pixels
        free = self.limit - in_use - BATCHES_IN_FLIGHT * MIN_ENCODED_BYTES
        if free < largest:
            enough = in_use + BATCHES_IN_FLIGHT * MIN_ENCODED_BYTES + largest
            pixels = free // DECODE_BYTES_PER_PIXEL
            lower = f", or --max-pixels {pixels}" if pixels > 1_000_000 else ""
            raise DanqingError(
                f"--memory-limit {_mebibytes(self.limit)}: models and libraries take {_mebibytes(in_use)}, and a "
                f"picture of {self.max_pixels:,} pixels up to {_mebibytes(largest)}; "
                f"use --memory-limit {_mebibytes(enough)}{lower}"
            )
        self.encoded = min(self.encoded, MIN_ENCODED_BYTES + (free - largest) // BATCHES_IN_FLIGHT)
        encoded_extra = BATCHES_IN_FLIGHT * (self.encoded - MIN_ENCODED_BYTES)
        self.pixels = min(self.pixels, (free - encoded_extra) // DECODE_BYTES_PER_PIXEL)
        self.limit = None  # the bounds now keep to it


def text_bytes(caption: str, metadata: dict[str, Any]) -> int:
    """Returns the bytes of memory that a row's caption and metadata take while the row is in flight."""
    total, waiting = TEXT_COPIES * len(caption.encode("utf-8", "surrogatepass")), list(metadata.values())
    while waiting:
        value = waiting.pop()
        total += sys.getsizeof(value)
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return total


def _mebibytes(size: int) -> str:
    return f"{-(-size // (1 << 20))}M"


def read_size(text: str) -> int:
    """Reads a size in bytes; K, M, G and T are powers of 1024.

    Raises:
        ValueError: the text is not a positive size.

    >>> read_size("4G"), read_size("1.5 MiB"), read_size("1000000")
    (4294967296, 1572864, 1000000)
    """
    number, unit = text.strip().upper().removesuffix("IB").removesuffix("B"), 1
    for power, letter in enumerate("KMGT", 1):
        if number.endswith(letter):
            number, unit = number[:-1], 1 << (10 * power)
    size = float(number) * unit
    if not 1 <= size < MAX_SIZE:
        raise ValueError(text)
    return int(size)
