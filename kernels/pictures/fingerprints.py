"""Kernels that group 64-bit fingerprints by Hamming distance."""

from __future__ import annotations

import numpy as np

from danqing.kernels.neighbours.components import unite
from danqing.kernels.portable import inlined, kernel


@inlined
def differing_bits(a, b):
    """Returns the Hamming distance of two uint64, with the bits counted in parallel (Warren, Hacker's Delight, 5-1)."""
    x = a ^ b
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel
def join_in_buckets(first, last, step, hashes, order, mask, max_bits, parent):
    """Unites the components of hashes that agree in all bits of `mask` and differ in at most `max_bits` bits.

    Args:
        hashes: uint64 (rows,).
        order: int64 (rows,), row numbers sorted by the masked bits.
        mask: uint64 (1,).
        max_bits: maximum Hamming distance.
        parent: int64 (rows,), see `kernels.neighbours.components`.
    """
    for place in range(first, last, step):
        row = order[place]
        bucket = hashes[row] & mask[0]
        after = place + 1
        while after < order.size and hashes[order[after]] & mask[0] == bucket:
            if differing_bits(hashes[row], hashes[order[after]]) <= max_bits:
                unite(parent, row, order[after])
            after += 1
