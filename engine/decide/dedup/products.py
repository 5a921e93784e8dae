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
    rows that stay folded meanwhile. `slack`: more than a product of two folded vectors can be wrong. `exact_rows`:
    below this number of rows all pairs are compared, even if a recall below 1 is asked for (`dedup.lists`).
    """

    kind: Any
    tile: int
    block: int
    slack: float
    exact_rows: int


PRODUCTS = {
    # A tile of 16 MiB fits the caches. Below 8,192 rows, making the lists takes longer than comparing all pairs.
    "cpu": Products(np.float32, 2048, 1 << 15, 1e-4, 1 << 13),
    # A tile of 512 MiB takes far longer than its launch. On an H200 all pairs of 1 M rows took 4.4 s, and one launch
    # takes 0.1 ms (BENCHMARKS.md). Lists need 4,000 to 33,000 small launches for as many rows. All pairs grow as n^2,
    # lists as n^1.5, so lists are predicted to be no slower from there on.
    "cuda": Products(np.float16, 1 << 14, 1 << 18, 2e-3, 1 << 20),
}
