"""Folding: a short vector for each long one, whose products are never below the long ones'.

Let V have k orthonormal columns. A unit vector a has coordinates a·V and a tail r of length sqrt(1 - |a·V|²) outside
them. By Cauchy–Schwarz a·b = (a·V)·(b·V) + r·s ≤ (a·V)·(b·V) + |r| |s|, which is the product of the two vectors of
k + 1 numbers [a·V, |r|] and [b·V, |s|]. So a pair whose folded product lies below the threshold is refused at
(k + 1) / d of the cost, and none that lies above it is ever lost. V are the principal directions of a sample, so
that the tails are short; how many pay is measured on another sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from danqing.engine.decide.dedup.features import Features

ROUNDING = 2e-6
"""Added to the square of a tail: no rounding of the coordinates may make it too short."""
FEW = 8192
"""Rows that are compared sooner than directions for them are found."""
SAMPLE = 1024
WIDTHS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512)
"""Numbers of a folded vector to choose from."""
SCAN, CHECK = 16, 16
"""What looking at a product costs, and what an exact check costs a dimension, in multiply-adds of a product."""


@dataclass(frozen=True)
class Folding:
    """`basis`: float32 (dimension, k), orthonormal columns; None leaves vectors as they are."""

    basis: Any = None

    @classmethod
    def fit(cls, features: Features, threshold: float, crowding: int = 1) -> Folding:
        """The folding with which finding pairs of a cosine above `threshold` costs least.

        Args:
            crowding: how many times likelier than in pairs by chance that is where it will be looked for.
        """
        xp, slack = features.device.xp, features.products.slack
        if len(features) < FEW:
            return cls()
        places = np.linspace(0, len(features) - 1, 4 * SAMPLE).astype(np.int64)
        seen = features.take(places[::2]).unit()
        moment = (seen.T @ seen).astype(np.float64)
        _, directions = xp.linalg.eigh(moment)  # ascending
        directions = directions[:, ::-1].astype(np.float32)
        unseen = features.take(places[1::4])
        unit = unseen.unit()
        truly = xp.count_nonzero(unit @ unit.T > threshold - slack)  # whose rows are soon in one set, and not checked
        best, cost = cls(), float(features.dimension + SCAN)
        for width in WIDTHS:
            if width >= features.dimension:
                break
            folding = cls(xp.ascontiguousarray(directions[:, : width - 1]))
            folded = folding(unseen)
            falsely = xp.count_nonzero(folded @ folded.T > threshold - slack) - truly
            checks = float(falsely) / (len(unseen) * (len(unseen) - 1)) * crowding * CHECK * features.dimension
            if width + SCAN + checks < cost:
                best, cost = folding, width + SCAN + checks
        return best

    def __call__(self, features: Features) -> Any:
        """Folded vectors, ready to be multiplied: (rows, k + 1)."""
        xp, products = features.device.xp, features.products
        width = features.dimension if self.basis is None else self.basis.shape[1] + 1
        out = xp.empty((len(features), width), products.kind)
        for start in range(0, len(features), products.tile):
            some = slice(start, start + products.tile)
            unit, part = features.take(some).unit(), out[some]
            if self.basis is None:
                part[:] = unit
                continue
            inside = unit @ self.basis
            part[:, :-1] = inside
            part[:, -1] = xp.sqrt(xp.maximum(1 - xp.einsum("ij,ij->i", inside, inside), 0) + ROUNDING)
        return out

    def coordinates(self, folded: Any) -> Any:
        """What the vectors have in the basis: float32 (rows, k)."""
        return (folded if self.basis is None else folded[:, :-1]).astype(np.float32, copy=False)
