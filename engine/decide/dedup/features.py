"""The features of a run as one table, without a copy of the stored arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from danqing.engine.core.device import Device
from danqing.engine.decide.dedup.products import PRODUCTS, Products
from danqing.kernels.neighbours.pairs import Rows, fill_scales, unpack
from danqing.kernels.portable import address_of

ROWS_PER_BATCH = 1 << 20
"""Rows whose addresses are computed at the same time."""


class Features:
    """Rows of several float16 arrays, memory-mapped or not. The table holds 16 bytes per row: address and scale.

    A row that is zero or not finite has no direction, and so no neighbours.

    Args:
        device: where kernels read the features.
        blocks: float16 (rows, dimension) each, in C order, all of one dimension. Empty blocks are ignored.
        rows: int64 (count,), the rows to take from the concatenated blocks; None: all.

    Raises:
        ValueError: the blocks have different dimensions.
    """

    def __init__(self, device: Device, blocks: Sequence[np.ndarray], rows: np.ndarray | None = None) -> None:
        self.device = device
        self.blocks = [device.up_or_pinned(block) for block in blocks if len(block)]
        dimensions = {block.shape[1] for block in self.blocks} or {0}
        if len(dimensions) > 1:
            raise ValueError(f"features of different dimensions: {sorted(dimensions)}")
        self.dimension: int = dimensions.pop()
        ends, size = np.cumsum([len(block) for block in self.blocks], dtype=np.int64), 2 * self.dimension
        shifts = np.array([address_of(b) - (end - len(b)) * size for b, end in zip(self.blocks, ends, strict=True)])
        address = np.arange(ends[-1] if len(ends) else 0) if rows is None else rows.astype(np.int64)
        for start in range(0, len(address), ROWS_PER_BATCH):
            row = address[start : start + ROWS_PER_BATCH]
            shift = shifts[np.searchsorted(ends, row, "right")]
            row *= size
            row += shift
        address = device.up(address)
        scale = device.xp.empty(len(address))
        self.rows = Rows(address, scale, device.up([self.dimension]))
        fill_scales.launch(device, len(self), self.rows)

    def __len__(self) -> int:
        return len(self.rows.address)

    @property
    def products(self) -> Products:
        """Settings of the device's products of folded vectors."""
        return PRODUCTS[self.device.kind]

    def take(self, rows: np.ndarray | slice) -> Features:
        """Returns a table of some of the rows, in the given order; the features are not copied."""
        part = object.__new__(Features)
        part.device, part.blocks, part.dimension = self.device, self.blocks, self.dimension
        part.rows = Rows(self.rows.address[rows], self.rows.scale[rows], self.rows.dimension)
        return part

    def unit(self) -> Any:
        """Returns all rows scaled to length 1: float32 (rows, dimension); zeros for a row without direction."""
        out = self.device.xp.empty((len(self), self.dimension), np.float32)
        unpack.launch(self.device, len(self), self.rows, out)
        return out
