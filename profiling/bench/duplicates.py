"""Near-duplicate search beside what others do for the same sets, over the same float16 features, on the same cores.

    pip install faiss-cpu scipy
    python -m danqing.profiling.bench.duplicates --rows 10000,50000,100000,200000

Every method gets the rows in memory and returns a label a row; each runs in a process of its own, which tells how much
memory it took beside the features. `edges` is the share of the true pairs (exact float64 cosines of all that float32
cannot rule out) whose two rows have one label; the search is exact if that is 1 and there are as many sets. The data:
30 % of the rows in groups of 2 to 50 that lie within the threshold of a common centre, the others real features
(`--features`) or, hardest of all, isotropic noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

WITHIN, RECALL, TILE = 0.1, 0.999, 2048
SLOW = {"FAISS range_search": 50_000, "HNSW": 50_000}
"""Methods that are not run on more rows than this."""

console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)


def planted(rows: int, seed: int, real: np.ndarray | None, out: np.ndarray) -> None:
    """Fills float16 (rows, dimension): 30 % of the rows are in groups, shuffled among the others."""
    rng = np.random.default_rng(seed)
    order = None if real is None else iter(rng.permutation(len(real)))

    def others(count: int) -> np.ndarray:
        if real is None or order is None:
            return unit(rng.normal(size=(count, out.shape[1])))
        return unit(real[sorted(itertools.islice(order, count))])

    centre_of, groups = grouped(rows, rng)
    centres = others(groups)
    for start in range(0, rows, 10_000):
        part = centre_of[start : start + 10_000]
        member, vectors = part >= 0, np.empty((len(part), out.shape[1]), np.float32)
        vectors[~member] = others(int((~member).sum()))
        shift = unit(rng.normal(size=(int(member.sum()), out.shape[1]))) * rng.uniform(0.05, 0.2, (member.sum(), 1))
        vectors[member] = unit(centres[part[member]] + shift)
        out[start : start + 10_000] = vectors


def grouped(rows: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Assigns 30 % of the rows to groups of 2 to 50.

    Returns:
        int64 (rows,), the group of each row, -1 for none; and the number of groups.
    """
    sizes = rng.integers(2, 51, rows // 2 + 1)
    sizes = sizes[: np.searchsorted(np.cumsum(sizes), 0.3 * rows) + 1]
    groups = np.repeat(np.arange(len(sizes)), sizes)[:rows]
    return rng.permutation(np.r_[groups, np.full(rows - len(groups), -1)]), len(sizes)


def unit(features: np.ndarray) -> np.ndarray:
    out = features.astype(np.float32)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def linked(rows: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(left), bool), (left, right)), (rows, rows))
    labels: np.ndarray = connected_components(graph, directed=False)[1]
    return labels


def near_pairs(features: np.ndarray, within: float) -> tuple[np.ndarray, np.ndarray]:
    """All pairs whose float32 product lies above 1 - within: a blocked BLAS product of the upper half."""
    vectors, pairs = unit(features), []
    for top in range(0, len(vectors), TILE):
        for start in range(top, len(vectors), TILE):
            found = vectors[top : top + TILE] @ vectors[start : start + TILE].T > 1 - within
            left, right = np.nonzero(found)
            forward = top + left < start + right
            pairs.append((top + left[forward], start + right[forward]))
    return np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])


def product(features: np.ndarray) -> np.ndarray:
    return linked(len(features), *near_pairs(features, WITHIN))


def ours(features: np.ndarray) -> np.ndarray:
    from danqing.engine.core.device import open_device
    from danqing.engine.decide.dedup.features import Features
    from danqing.engine.decide.dedup.sets import chains

    with open_device() as device:
        return chains(Features(device, [features]), WITHIN)


def ours_likely(features: np.ndarray) -> np.ndarray:
    from danqing.engine.core.device import open_device
    from danqing.engine.decide.dedup.features import Features
    from danqing.engine.decide.dedup.sets import likely_chains

    with open_device() as device:
        return likely_chains(Features(device, [features]), WITHIN, RECALL)[0]


def faiss_range(features: np.ndarray) -> np.ndarray:
    import faiss

    vectors = unit(features)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    limits, _, right = index.range_search(vectors, 1 - WITHIN)
    return linked(len(vectors), np.repeat(np.arange(len(vectors)), np.diff(limits).astype(np.int64)), right)


def semdedup(features: np.ndarray) -> np.ndarray:
    """Abbas et al. 2023: k-means, then all pairs inside a cluster; about 300 rows a cluster."""
    import faiss

    vectors = unit(features)
    clusters = max(len(vectors) // 300, 1)
    means = faiss.Kmeans(vectors.shape[1], clusters, niter=10, spherical=True, seed=1, max_points_per_centroid=100)
    means.train(vectors)
    of = means.assign(vectors)[1]
    order = np.argsort(of, kind="stable")
    pairs = []
    for members in np.split(order, np.flatnonzero(np.diff(of[order])) + 1):
        left, right = np.nonzero(np.triu(vectors[members] @ vectors[members].T > 1 - WITHIN, 1))
        pairs.append((members[left], members[right]))
    return linked(len(vectors), np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs]))


def hnsw(features: np.ndarray) -> np.ndarray:
    import faiss

    vectors = unit(features)
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    cosine, right = index.search(vectors, 50)
    left, place = np.nonzero((cosine > 1 - WITHIN) & (right >= 0))
    return linked(len(vectors), left, right[left, place])


METHODS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ours, exact": ours,
    f"ours, recall {RECALL}": ours_likely,
    "blocked product": product,
    "FAISS range_search": faiss_range,
    "k-means + in-cluster (SemDeDup)": semdedup,
    "HNSW": hnsw,
}


def resident(kind: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most; `RssAnon`: those that are no file's."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def run_one(method: str, folder: Path) -> None:
    """In the process of its own: warms up on a few rows, then labels all of them."""
    features = np.load(folder / "features.npy")
    METHODS[method](features[:9000])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = resident("VmRSS"), time.perf_counter()
    labels = METHODS[method](features)
    seconds = time.perf_counter() - started
    np.save(folder / "labels.npy", labels)
    print(json.dumps({"seconds": seconds, "bytes": resident("VmHWM") - before}))


def true_pairs(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, right = near_pairs(features, WITHIN + 1e-4)
    keep = np.empty(len(left), bool)
    for start in range(0, len(left), 20_000):
        part = slice(start, start + 20_000)
        a, b = features[left[part]].astype(np.float64), features[right[part]].astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        keep[part] = 1 - (a * b).sum(1) / norms < WITHIN
    return left[keep], right[keep]


def measure(rows: int, real: np.ndarray | None, folder: Path, methods: list[str]) -> list[dict[str, Any]]:
    features = np.empty((rows, 768 if real is None else real.shape[1]), np.float16)
    planted(rows, rows, real, features)
    np.save(folder / "features.npy", features)
    left, right = true_pairs(features)
    sets = len(np.unique(linked(rows, left, right)))
    kind = "noise" if real is None else "real"
    results: list[dict[str, Any]] = []
    for method in methods:
        if rows > SLOW.get(method, rows):
            continue
        command = [sys.executable, "-m", "danqing.profiling.bench.duplicates", "--one", method, str(folder)]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        labels = np.load(folder / "labels.npy")
        edges = float((labels[left] == labels[right]).mean())
        found = {"sets": len(np.unique(labels)), "true_sets": sets, "edges": edges, "pairs": len(left)}
        results.append({"data": kind, "rows": rows, "method": method, **done, **found})
    return results


def show(results: list[dict[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("data", "rows", "method", "seconds", "product / it", "MB beside", "edges", "sets - true"):
        table.add_column(heading, justify="left" if heading in ("data", "method") else "right")
    base = {(r["data"], r["rows"]): r["seconds"] for r in results if r["method"] == "blocked product"}
    for r in results:
        seconds, peer = r["seconds"], base.get((r["data"], r["rows"]))
        ratio = f"{peer / seconds:.2f}" if peer else ""
        more = r["sets"] - r["true_sets"]
        beside = f"{r['bytes'] / 1e6:.0f}"
        figures = (f"{r['rows']:,}", r["method"], f"{seconds:.2f}", ratio, beside, f"{r['edges']:.5f}", str(more))
        table.add_row(r["data"], *figures)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,50000", metavar="N,…", help="(default: 10000,50000)")
    parser.add_argument("--features", type=Path, metavar="FILE.npy", help="real features: float16 (rows, dimension)")
    parser.add_argument("--no-noise", action="store_true", help="real features only")
    parser.add_argument("--methods", metavar="NAME;…", help=f"of {', '.join(METHODS)} (default: all)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="results, beside the table")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one[0], Path(options.one[1]))
        return
    real = np.load(options.features, mmap_mode="r") if options.features else None
    methods = [name.strip() for name in options.methods.split(";")] if options.methods else list(METHODS)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in map(int, options.rows.split(",")):
            if not options.no_noise:
                results += measure(rows, None, Path(folder), methods)
            if real is not None and len(real) >= 0.75 * rows:
                results += measure(rows, real, Path(folder), methods)
    show(results)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
