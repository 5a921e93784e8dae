"""Folding: maps each vector to a shorter one such that the product of two folded vectors bounds their cosine.

Let V have k orthonormal columns. A unit vector a has coordinates a·V and a residual r of length sqrt(1 - |a·V|²). By
Cauchy–Schwarz a·b = (a·V)·(b·V) + r·s ≤ (a·V)·(b·V) + |r| |s|, which is the product of the folded vectors [a·V, |r|]
and [b·V, |s|] of k + 1 numbers. So a pair whose folded product is below the threshold is rejected at (k + 1) / d of the
cost, and no pair above the threshold is lost. V holds the principal directions of a sample, so that the residuals are
short. The best k is measured on another sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from danqing.engine.decide.dedup.features import Features

ROUNDING = 2e-6
"""Added to the square of a residual, so that rounding of the coordinates cannot make it too short."""
MIN_ROWS_FOR_FOLDING = 8192
"""Below this many rows a brute-force comparison is faster than computing the basis."""
FOLDING_SAMPLE_ROWS = 1024
"""Rows on which the cost of a width is measured. The basis is computed from twice as many others."""
WIDTHS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512)
"""Candidates for the length of a folded vector."""
SCAN_COST = 16
"""Cost of comparing one product with the bound, in multiply-adds of the matrix product."""
CHECK_COST = 16
"""Cost per dimension of an exact check, in the same unit."""


@dataclass(frozen=True)
class Folding:
    """A folding.

    Attributes:
        basis: float32 (dimension, k) with orthonormal columns, on the device; None does not fold.
    """

    basis: Any = None

    @classmethod
    def fit(cls, features: Features, threshold: float, crowding: int = 1) -> Folding:
        """Chooses the folding with which the search for pairs of a cosine above `threshold` costs least.

        Args:
            features: the rows that will be compared.
            threshold: the cosine.
            crowding: how much more frequent false candidates are among the pairs that will be compared than among
                random pairs. It is 1 if all pairs are compared, and the number of lists if only rows of one list are.
        """
        xp, slack = features.device.xp, features.products.slack
        if len(features) < MIN_ROWS_FOR_FOLDING:
            return cls()
        positions = np.linspace(0, len(features) - 1, 4 * FOLDING_SAMPLE_ROWS).astype(np.int64)
        fitted = features.take(positions[::2]).unit()
        moment = (fitted.T @ fitted).astype(np.float64)
        _, directions = xp.linalg.eigh(moment)  # ascending
        directions = directions[:, ::-1].astype(np.float32)
        held_out = features.take(positions[1::4])
        unit = held_out.unit()
        # True candidates cost little: their rows are soon in one group, and are then not checked again.
        true = xp.count_nonzero(unit @ unit.T > threshold - slack)
        best, cost = cls(), float(features.dimension + SCAN_COST)
        for width in WIDTHS:
            if width >= features.dimension:
                break
            folding = cls(xp.ascontiguousarray(directions[:, : width - 1]))
            folded = folding(held_out)
            false = float(xp.count_nonzero(folded @ folded.T > threshold - slack) - true)
            share = false / (len(held_out) * (len(held_out) - 1)) * crowding
            width_cost = width + SCAN_COST + share * CHECK_COST * features.dimension
            if width_cost < cost:
                best, cost = folding, width_cost
        return best

    def __call__(self, features: Features) -> Any:
        """Folds all rows: (rows, k + 1) of the type `products.kind`, on the device."""
        xp, products = features.device.xp, features.products
        width = features.dimension if self.basis is None else self.basis.shape[1] + 1
        out = xp.empty((len(features), width), products.kind)
        for start in range(0, len(features), products.tile):
            tile = slice(start, start + products.tile)
            unit, part = features.take(tile).unit(), out[tile]
            if self.basis is None:
                part[:] = unit
                continue
            coordinates = unit @ self.basis
            part[:, :-1] = coordinates
            part[:, -1] = xp.sqrt(xp.maximum(1 - xp.einsum("ij,ij->i", coordinates, coordinates), 0) + ROUNDING)
        return out

    def coordinates(self, folded: Any) -> Any:
        """Returns the coordinates of folded vectors in the basis, without the residual: float32 (rows, k)."""
        return (folded if self.basis is None else folded[:, :-1]).astype(np.float32, copy=False)
