"""Union-find: the connected components of a graph given as edges, in O(rows) memory."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def _root(parent: np.ndarray, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]  # path halving
        node = parent[node]
    return node


@njit(nogil=True, cache=True)
def join(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Unites the sets of both ends of every edge, in place.

    The smaller root wins, so the result depends on the edges only, never on their order.

    Args:
        parent: int64 (rows,), `parent[i] <= i`; start with `numpy.arange(rows)`.
        left, right: int64 (edges,), row numbers.
    """
    for edge in range(left.size):
        a, b = _root(parent, left[edge]), _root(parent, right[edge])
        if a < b:
            parent[b] = a
        elif b < a:
            parent[a] = b


@njit(nogil=True, cache=True)
def roots(parent: np.ndarray) -> np.ndarray:
    """The smallest row of each row's component: int64 (rows,)."""
    out = np.empty_like(parent)
    for node in range(parent.size):
        out[node] = _root(parent, node)
    return out
