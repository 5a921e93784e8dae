"""Compares near-duplicate search with other ways to the same groups, over the same float16 features and cores.

    pip install faiss-cpu scipy
    python -m danqing.profiling.bench.duplicates --rows 50000,200000 --features features.npy
    python -m danqing.profiling.bench.duplicates --growth --rows 10000,30000,100000,300000,1000000
    python -m danqing.profiling.bench.duplicates --growth --rows 300000 --dimension 64    # equality of the indexes

30 % of the rows are in groups of 2 to 50 within the threshold of a common centre; the others are isotropic noise, the
hardest case, or with `--features` real features. Every method is a process that loads the features and labels every
row; `MiB` is its peak beside them. `edges` is the share of the true pairs (exact float64 cosines) whose two rows have
one label. With `--growth` only our searches run, without true pairs; `same` is the share of the rows whose group is
that of the exact search by tiles.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from danqing.engine.core.device import Device, open_device
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.groups import likely_components, near_components
from danqing.profiling.bench import harness

WITHIN, RECALL, DIMENSION = 0.1, 0.999, 768
TILE_ROWS, WARM_UP_ROWS, CHUNK_ROWS = 2048, 9000, 1 << 17


def planted(device: Device, rows: int, dimension: int, seed: int, real: np.ndarray | None = None) -> Any:
    """Makes vectors on the device: 30 % of the rows in groups, the others noise or rows of `real`.

    Returns:
        float16 (rows, dimension), unit length, on the device.
    """
    xp = device.xp
    centre_of, groups = grouped(rows, np.random.default_rng(seed))
    chance = xp.random.default_rng(seed)
    order = iter(() if real is None else np.random.default_rng(seed).permutation(len(real)))

    def noise(count: int) -> Any:
        return _unit(xp, chance.standard_normal((count, dimension), dtype=np.float32))

    def real_rows(wanted: np.ndarray) -> Any:
        found = np.ones((len(wanted), dimension), np.float32)
        found[wanted] = real[sorted(itertools.islice(order, int(wanted.sum())))]  # type: ignore[index]
        return _unit(xp, device.up(found))

    centres = noise(groups) if real is None else real_rows(np.ones(groups, bool))
    out = xp.empty((rows, dimension), np.float16)
    for start in range(0, rows, CHUNK_ROWS):
        members = centre_of[start : start + CHUNK_ROWS]
        part, shift = device.up(members), noise(len(members))
        reach = 0.05 + 0.15 * chance.random((len(members), 1), dtype=np.float32)
        near = _unit(xp, centres[part] + reach * shift)
        others = shift if real is None else real_rows(members < 0)
        out[start : start + CHUNK_ROWS] = xp.where(part[:, None] >= 0, near, others)
    device.wait()
    return out


def grouped(rows: int, chance: np.random.Generator) -> tuple[np.ndarray, int]:
    """Assigns 30 % of the rows to groups of 2 to 50.

    Returns:
        int64 (rows,), the group of each row, -1 for none; and the number of groups.
    """
    sizes = chance.integers(2, 51, rows // 2 + 1)
    sizes = sizes[: np.searchsorted(np.cumsum(sizes), 0.3 * rows) + 1]
    groups = np.repeat(np.arange(len(sizes)), sizes)[:rows]
    return chance.permutation(np.r_[groups, np.full(rows - len(groups), -1)]), len(sizes)


def _unit(xp: Any, vectors: Any, kind: Any = np.float32) -> Any:
    vectors = vectors.astype(kind, copy=False)
    return vectors / xp.linalg.norm(vectors, axis=1, keepdims=True)


def linked(rows: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """int32 (rows,): labels of the connected components of a graph with these edges."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(left), bool), (left, right)), (rows, rows))
    labels: np.ndarray = connected_components(graph, directed=False)[1]
    return labels


def near_pairs(features: np.ndarray, within: float, kind: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """All pairs whose product, in numbers of this kind, is above 1 - within: a blocked product of the upper half."""
    vectors, pairs = _unit(np, features, kind), []
    for top in range(0, len(vectors), TILE_ROWS):
        for start in range(top, len(vectors), TILE_ROWS):
            found = vectors[top : top + TILE_ROWS] @ vectors[start : start + TILE_ROWS].T > 1 - within
            left, right = np.nonzero(found)
            forward = top + left < start + right
            pairs.append((top + left[forward], start + right[forward]))
    return np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])


# ── methods: features → labels, and the recall that the search itself measured ──


def ours(features: np.ndarray, index: str, recall: float = 1.0) -> tuple[np.ndarray, str]:
    with open_device() as device:
        if recall == 1:
            return near_components(Features(device, [features]), WITHIN, index=index), ""
        labels, measured = likely_components(Features(device, [features]), WITHIN, recall, index=index)
        return labels, f"measured recall: {measured}"


def product(features: np.ndarray) -> tuple[np.ndarray, str]:
    return linked(len(features), *near_pairs(features, WITHIN)), ""


def faiss_range(features: np.ndarray) -> tuple[np.ndarray, str]:
    import faiss

    vectors = _unit(np, features)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    limits, _, right = index.range_search(vectors, 1 - WITHIN)
    return linked(len(vectors), np.repeat(np.arange(len(vectors)), np.diff(limits).astype(np.int64)), right), ""


def semdedup(features: np.ndarray) -> tuple[np.ndarray, str]:
    """Abbas et al. 2023: k-means, then all pairs inside a cluster; about 300 rows a cluster."""
    import faiss

    vectors = _unit(np, features)
    clusters = max(len(vectors) // 300, 1)
    means = faiss.Kmeans(vectors.shape[1], clusters, niter=10, spherical=True, seed=1, max_points_per_centroid=100)
    means.train(vectors)
    of = means.assign(vectors)[1]
    order = np.argsort(of, kind="stable")
    pairs = []
    for members in np.split(order, np.flatnonzero(np.diff(of[order])) + 1):
        left, right = np.nonzero(np.triu(vectors[members] @ vectors[members].T > 1 - WITHIN, 1))
        pairs.append((members[left], members[right]))
    return linked(len(vectors), np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])), ""


EXACT = "ours, exact"
METHODS: dict[str, tuple[Callable[[np.ndarray], tuple[np.ndarray, str]], int]] = {
    EXACT: (partial(ours, index="tiles"), 300_000),
    "ours, exact, index faiss": (partial(ours, index="faiss"), 300_000),
    f"ours, recall {RECALL}": (partial(ours, index="lists", recall=RECALL), 1 << 40),
    f"ours, recall {RECALL}, index faiss": (partial(ours, index="faiss", recall=RECALL), 1 << 40),
    "blocked product": (product, 1 << 40),
    "FAISS range_search": (faiss_range, 50_000),
    "k-means + in-cluster (SemDeDup)": (semdedup, 1 << 40),
}
"""Name → method, and the most rows that it is run on."""


def resident_mib(kind: str) -> float:
    """Resident memory of this process: `VmRSS` now, `VmHWM` at most."""
    (kilobytes,) = re.findall(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) / 1024


def time_method(name: str, folder: Path) -> None:
    """In the child: warms up on a few rows, then times the method."""
    features, method = np.load(folder / "features.npy"), METHODS[name][0]
    results: list[tuple[np.ndarray, str]] = []
    method(features[:WARM_UP_ROWS])
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident_mib("VmRSS")
    harness.time_and_report(lambda: results.append(method(features)), lambda: resident_mib("VmHWM") - before)
    np.save(folder / f"{name}.npy", results[0][0])
    (folder / f"{name}.txt").write_text(results[0][1])


def measure(rows: int, real: np.ndarray | None, options: Namespace, folder: Path) -> None:
    with open_device() as device:
        features = planted(device, rows, options.dimension if real is None else real.shape[1], rows, real)
    np.save(folder / "features.npy", features)
    names = [name for name, (_, most) in METHODS.items() if rows <= most and (not options.growth or "ours" in name)]
    cores = sorted(os.sched_getaffinity(0))

    def side(name: str) -> harness.Side:
        return partial(harness.time_child, "duplicates", [name, folder], cores, folder / "child"), None

    runs = harness.take_turns({name: side(name) for name in names}, options.rounds)
    notes = {name: (folder / f"{name}.txt").read_text() for name in names}
    if not options.growth:
        left, right = near_pairs(features, WITHIN, np.float64)
        for name in names:
            labels = np.load(folder / f"{name}.npy")
            notes[name] += f" edges: {(labels[left] == labels[right]).mean():.5f}"
    elif EXACT in names:
        exact = np.load(folder / f"{EXACT}.npy")
        for name in names:
            notes[name] += f" same: {(np.load(folder / f'{name}.npy') == exact).mean():.5f}"
    title = f"{rows:,} rows, {'noise' if real is None else 'real features'}"
    harness.print_table(title, runs, rows, names[-1] if options.growth else "blocked product", notes)


def compare(options: Namespace, folder: Path) -> None:
    real = np.load(options.features, mmap_mode="r") if options.features else None
    for rows in map(int, options.rows.split(",")):
        measure(rows, None, options, folder)
        if real is not None and len(real) >= 0.75 * rows:
            measure(rows, real, options, folder)


def main() -> int:
    parser = harness.new_parser(__doc__, rounds=1)
    parser.add_argument("--rows", default="10000,50000", metavar="N,…", help="default: 10000,50000")
    parser.add_argument("--features", type=Path, metavar="FILE.npy", help="real features: float16 (rows, dimension)")
    parser.add_argument("--dimension", type=int, default=DIMENSION, help=f"of planted features (default: {DIMENSION})")
    parser.add_argument("--growth", action="store_true", help="only our searches, without true pairs")
    options = parser.parse_args()
    if options.one:
        time_method(options.one[0], Path(options.one[1]))
        return 0
    return harness.main(compare, options, ("scipy", "faiss-cpu"))


if __name__ == "__main__":
    sys.exit(main())
