"""Who stays of a set of near-duplicates."""

from __future__ import annotations

import numpy as np


def nearest_to_centroid(features: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Of every set, the row nearest to the mean of its members' unit features; the first one among equals.

    Args:
        features: (rows, dimension), unit rows.
        group: int64 (rows,), the smallest row of each row's set.

    Returns:
        int64 (rows,): for each row, the row that stays for its set (itself, if it is alone).
    """
    out = np.arange(len(group))
    order = np.argsort(group, kind="stable")
    borders = np.flatnonzero(np.diff(group[order])) + 1
    for members in np.split(order, borders):
        if len(members) < 2:
            continue
        unit = features[members].astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        # Distances to one centroid rank as inner products with it. Identical pictures must tie, so rounding noise
        # (1e-12) is cut off before the first of the best is taken.
        out[members] = members[np.argmax(np.round(unit @ unit.mean(0), 12))]
    return out
