"""Union-find: the connected components of a graph, edge by edge, in O(rows) memory; many threads at a time.

`parent` is int64 (rows,), `parent[i] <= i`, at first `arange(rows)`. The smaller root always wins, so that the outcome
depends on the edges only, never on their order. Roots are hooked by compare-and-swap and paths halved in passing, as
in ECL-CC (Jaiganesh and Burtscher, HPDC 2018): a thread may see an old parent, but never one that is no ancestor.
"""

from __future__ import annotations

from typing import Any

from danqing.kernels.portable import ArrayLauncher, compare_and_swap, inlined, kernel


@inlined
def root(parent, node):
    """The smallest row known to be in the set of `node`."""
    above = parent[node]
    while above != node:
        parent[node] = parent[above]  # path halving
        node = above
        above = parent[node]
    return node


@inlined
def unite(parent, a, b):
    """Makes one set of the two that hold rows `a` and `b`."""
    a, b = root(parent, a), root(parent, b)
    while a != b:
        if a < b:
            a, b = b, a
        found = compare_and_swap(parent, a, a, b)
        if found == a:
            return
        # On from what the swap saw: a GPU's caches may still show the old parent to a load, over and over.
        a, b = root(parent, found), root(parent, b)


@kernel
def find_roots(first, last, step, parent, out):
    """The smallest row of each row's component, once all edges are in: int64 (rows,)."""
    for node in range(first, last, step):
        above = parent[node]
        while parent[above] != above:
            above = parent[above]
        out[node] = above


def roots(device: ArrayLauncher, parent: Any) -> Any:
    """The smallest row of each row's component: int64 (rows,)."""
    out = device.xp.empty_like(parent)
    find_roots.launch(device, len(parent), parent, out)
    return out
