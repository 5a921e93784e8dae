"""How much memory rows on their way through the stages may take."""

from __future__ import annotations

from dataclasses import dataclass

from danqing.engine.core.batch_sizes import BATCH_SIZES
from danqing.engine.core.errors import DanqingError

FLOWING = 11
"""Batches of encoded pictures there can be at once: made, waiting, being packed, worked on; for each thread that has
them (`engine.score.loop`)."""
DECODING = 18
"""Bytes a pixel takes at worst: a picture with alpha, laid on white by Pillow. Mostly it is 3."""
RESERVE = 256 << 20
"""What runtimes take for themselves when the first rows come."""
LEAST = 4 << 20
"""What a batch of encoded pictures may always hold. Files larger than this can lead beyond a limit."""


@dataclass
class Memory:
    """What a batch may hold: `encoded` bytes as read, decoded `pixels`. A row heavier than that travels alone.

    The defaults are those of a CPU; `Memory.of` has those of a kind of device.

    Args:
        limit: bytes of resident memory that the process is to keep to; None: no limit.
        max_pixels: of the largest picture there can be.
    """

    limit: int | None = None
    max_pixels: int = 0
    encoded: int = BATCH_SIZES["cpu"].encoded_bytes
    pixels: int = BATCH_SIZES["cpu"].pixels

    @classmethod
    def of(cls, kind: str, limit: int | None, max_pixels: int) -> Memory:
        """Makes the bounds for a kind of device, `cpu` or `cuda`; `limit` and `max_pixels` as in the class."""
        sizes = BATCH_SIZES[kind]
        return cls(limit, max_pixels, sizes.encoded_bytes, sizes.pixels)

    def settle(self) -> None:
        """Shares out what is left of the limit; to be called when all models are open.

        Raises:
            DanqingError: the limit leaves no room for the largest picture; says what would.
        """
        if self.limit is None:
            return
        import psutil  # only here: every command reads this module for its options

        taken = psutil.Process().memory_info().rss + RESERVE
        free = self.limit - taken - FLOWING * LEAST
        if free < DECODING * self.max_pixels:
            wanted = taken + FLOWING * LEAST + DECODING * self.max_pixels
            lower = f", or --max-pixels {free // DECODING}" if free > DECODING * 1_000_000 else ""
            raise DanqingError(
                f"--memory-limit {_told(self.limit)}: models and libraries take {_told(taken)}, and a picture of "
                f"{self.max_pixels:,} pixels up to {_told(DECODING * self.max_pixels)}; "
                f"use --memory-limit {_told(wanted)}{lower}"
            )
        spare = free - DECODING * self.max_pixels
        self.encoded = min(self.encoded, LEAST + spare // FLOWING)
        self.pixels = min(self.pixels, (free - FLOWING * (self.encoded - LEAST)) // DECODING)
        self.limit = None  # shared out; rows that come later are within it


def _told(size: int) -> str:
    return f"{-(-size // (1 << 20))}M"


def read_size(text: str) -> int:
    """Bytes of 4G, 512M or 1000000; K, M and G are powers of 1024.

    Raises:
        ValueError: none of these.
    """
    number, unit = text.strip().upper().removesuffix("IB").removesuffix("B"), 1
    for power, letter in enumerate("KMGT", 1):
        if number.endswith(letter):
            number, unit = number[:-1], 1 << (10 * power)
    size = int(float(number) * unit)
    if size <= 0:
        raise ValueError(text)
    return size
