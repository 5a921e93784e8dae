"""The features of a run as one table, none of them read before it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from danqing.engine.core.device import Device
from danqing.engine.decide.dedup.products import PRODUCTS, Products
from danqing.kernels.neighbours.pairs import Rows, fill_scales, unpack


class Features:
    """Rows of several float16 arrays, memory-mapped or not, known by their addresses: 16 bytes a row beside them.

    A row without direction (zeros, or a number that is none) stays, and has no neighbours.

    Args:
        blocks: float16 (rows, dimension) each, C order, of one dimension. Empty ones are left out.
        rows: which of their rows, int64; default: all.
    """

    def __init__(self, device: Device, blocks: Sequence[np.ndarray], rows: np.ndarray | None = None) -> None:
        self.device = device
        self.blocks = [device.within_reach(block) for block in blocks if len(block)]
        dimensions = {block.shape[1] for block in self.blocks} or {0}
        if len(dimensions) > 1:
            raise ValueError(f"features of different dimensions: {sorted(dimensions)}")
        self.dimension: int = dimensions.pop()
        addresses = [_address(block) + np.arange(len(block)) * block.strides[0] for block in self.blocks]
        address = np.concatenate([np.empty(0, np.int64), *addresses])
        address = device.up(address if rows is None else address[rows])
        scale = device.xp.empty(len(address))
        self.rows = Rows(address, scale, device.up([self.dimension]))
        fill_scales.launch(device, len(self), self.rows)

    def __len__(self) -> int:
        return len(self.rows.address)

    @property
    def products(self) -> Products:
        """How their folded vectors are multiplied."""
        return PRODUCTS[self.device.kind]

    def take(self, rows: np.ndarray | slice) -> Features:
        """Some of the rows, in that order; their numbers are not copied."""
        some = object.__new__(Features)
        some.device, some.blocks, some.dimension = self.device, self.blocks, self.dimension
        some.rows = Rows(self.rows.address[rows], self.rows.scale[rows], self.rows.dimension)
        return some

    def unit(self) -> Any:
        """All rows as float32 (rows, dimension) of length 1; zeros where there is no direction."""
        out = self.device.xp.empty((len(self), self.dimension), np.float32)
        unpack.launch(self.device, len(self), self.rows, out)
        return out


def _address(array: Any) -> int:
    interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    address: int = interface["data"][0]
    return address
