"""Sets of near-duplicates: connected components of the pairs, by Union-Find."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kernels.components import join, roots


def group_rows(rows: int, edges: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The smallest row of each row's set: int64 (rows,). Edges stream through; memory is O(rows)."""
    parent = np.arange(rows, dtype=np.int64)
    for left, right in edges:
        join(parent, left.astype(np.int64), right.astype(np.int64))
    return roots(parent)
