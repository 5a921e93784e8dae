"""Union-find: connected components of a graph, edge by edge, in O(rows) memory, by many threads at once.

`parent` is int64 (rows,), initially `arange(rows)`, with `parent[i] <= i`. The smaller root becomes the parent of the
larger one, so the result depends on the edges and not on their order. Roots are joined by compare-and-swap and paths
are halved during each search, as in ECL-CC (Jaiganesh and Burtscher, HPDC 2018): a thread can read an outdated parent,
which is still an ancestor.
"""

from __future__ import annotations

from typing import Any

from danqing.kernels.portable import ArrayLauncher, compare_and_swap, inlined, kernel


@inlined
def find_root(parent, node):
    """Returns the root of a row's component: its smallest row among those united so far."""
    above = parent[node]
    while above != node:
        parent[node] = parent[above]  # path halving
        node = above
        above = parent[node]
    return node


@inlined
def unite(parent, a, b):
    """Unites the components of rows `a` and `b`."""
    a, b = find_root(parent, a), find_root(parent, b)
    while a != b:
        if a < b:
            a, b = b, a
        found = compare_and_swap(parent, a, a, b)
        if found == a:
            return
        # Continues with the value that the swap read: on a GPU, a load can return an outdated parent from a cache.
        a, b = find_root(parent, found), find_root(parent, b)


@kernel
def join_edges(first, last, step, left, right, parent):
    """Unites the components of the rows of each edge, int64 (edges,)."""
    for edge in range(first, last, step):
        unite(parent, left[edge], right[edge])


@kernel
def find_roots(first, last, step, parent, out):
    """Writes the smallest row of each row's component to `out`, int64 (rows,), after all edges were added.

    `out` may be `parent`: another thread then reads a row's parent or its root, and both are ancestors.
    """
    for node in range(first, last, step):
        above = parent[node]
        while parent[above] != above:
            above = parent[above]
        out[node] = above


def find_components(device: ArrayLauncher, parent: Any) -> Any:
    """Finds the component of each row.

    Args:
        device: holds the array.
        parent: int64 (rows,), after all calls of `unite`; it gets the result.

    Returns:
        `parent`: the smallest row of each row's component.
    """
    find_roots.launch(device, len(parent), parent, parent)
    return parent
