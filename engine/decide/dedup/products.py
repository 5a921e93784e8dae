"""Products of folded vectors on each kind of device, and the largest error of a product.

A product only selects candidates; pairs above the bound are decided in float64 from the features. So a GPU may multiply
in half precision, on its tensor cores, about fifteen times as fast as in float32, if the bound is lowered by the
largest error. Rounding changes each number of both factors by at most 2^-11 of its value, which by Cauchy–Schwarz
changes the product of two unit vectors by at most 2 · 2^-11; rounding the product adds at most 2^-11. Sums are
accumulated in float32 (`Device.sum_in_float32`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Products(NamedTuple):
    """Settings for one kind of device.

    Attributes:
        kind: NumPy type of the factors and of the products.
        tile: rows on each side of one matrix product.
        block: rows that are kept folded while they are multiplied with all others.
        slack: upper bound on the error of a product of two folded vectors.
        exact_rows: below this number of rows all pairs are compared, even if the recipe allows a recall below 1
            (`dedup.lists`).
    """

    kind: Any
    tile: int
    block: int
    slack: float
    exact_rows: int


PRODUCTS = {
    # A tile of 16 MiB fits into the caches. Below 8,192 rows, making the lists takes longer than comparing all pairs.
    "cpu": Products(np.float32, 2048, 1 << 15, 1e-4, 1 << 13),
    # A tile of 512 MiB takes far longer than its launch. On an H200 all pairs of 1 M rows took 4.4 s, and one launch
    # takes 0.1 ms (BENCHMARKS.md). Lists need 4,000 to 33,000 small launches for as many rows. All pairs grow as n^2,
    # lists as n^1.5, so lists are predicted to be no slower from there on.
    "cuda": Products(np.float16, 1 << 14, 1 << 18, 2e-3, 1 << 20),
}
