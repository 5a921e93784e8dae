"""Fingerprints of 64 bits: which of them differ in a few bits only."""

from __future__ import annotations

import numpy as np

from danqing.kernels.neighbours.components import unite
from danqing.kernels.portable import inlined, kernel


@inlined
def differing_bits(a, b):
    """Hamming distance of two uint64, the bits counted side by side (Warren, Hacker's Delight, 5-1)."""
    x = a ^ b
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel
def join_in_buckets(first, last, step, hashes, order, mask, within, parent):
    """Unites the sets of hashes that agree in all bits of `mask` and differ in at most `within` others.

    Args:
        hashes: uint64 (rows,); order: int64 (rows,), sorted by the masked bits; mask: uint64 (1,).
    """
    for place in range(first, last, step):
        row = order[place]
        bucket = hashes[row] & mask[0]
        after = place + 1
        while after < order.size and hashes[order[after]] & mask[0] == bucket:
            if differing_bits(hashes[row], hashes[order[after]]) <= within:
                unite(parent, row, order[after])
            after += 1
