"""How folded vectors are multiplied: what is fastest on each kind of device, and how far it can be from the truth.

A product only says which pairs are looked at; what lies above the bound is decided in float64 from the features. So a
GPU may multiply in half precision, on its tensor cores, at some fifteen times the rate of float32, if the bound makes
room for what that can be wrong. Both factors are rounded by at most 2^-11 of each number, which by Cauchy–Schwarz moves
the product of two vectors of length 1 by at most 2 · 2^-11; the product itself is rounded by at most 2^-11 once more.
Sums are made in float32 (`Device.sum_in_float32`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Products(NamedTuple):
    """Of one kind of device.

    `kind`: type of the numbers that are multiplied, and of their products. `tile`: rows a side of a product. `block`:
    rows that stay folded meanwhile. `slack`: more than a product of two folded vectors can be wrong. `exact_rows`: up
    to so many rows all pairs are compared, even if fewer need be found (`engine.dedup.lists`).
    """

    kind: Any
    tile: int
    block: int
    slack: float
    exact_rows: int


PRODUCTS = {
    # A tile is what the caches hold: 16 MiB. Below 8,192 rows finding lists takes longer than comparing all pairs.
    "cpu": Products(np.float32, 2048, 1 << 15, 1e-4, 1 << 13),
    # A tile is work beside which a launch is short: 512 MiB. Lists are thousands of small launches (1 M rows: some
    # 4,000 to 33,000 of 0.2 ms, against 1 to 3 s for all pairs on an H100); as all pairs grow as n^2 and lists as
    # n^1.5, lists are predicted to pay from about 4 M rows on.
    "cuda": Products(np.float16, 1 << 14, 1 << 18, 2e-3, 1 << 22),
}
