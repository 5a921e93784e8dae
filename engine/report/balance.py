"""Balance of the pictures: k-means of their features, and how evenly the pairs are spread over the clusters.

The paper clusters 10 M pictures into 10,000 clusters and ranks the clusters by size. Here the clusters are those of a
sample of all pairs with features, and the kept ones among them are counted in the same clusters, so that the two can be
compared. FAISS finds them, on the CPU: at most `MAX_ROWS` rows and `MAX_CLUSTERS` clusters take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from danqing.engine.core.storage import FILES_AT_ONCE
from danqing.engine.decide.feature_files import read_feature_rows
from danqing.engine.report.figures import Figure, Line, Plot, Scale, curves
from danqing.engine.report.section import Section
from danqing.engine.report.view import View

MAX_ROWS, MAX_CLUSTERS = 20_000, 500
ROWS_PER_CLUSTER = 10
"""Minimum mean number of kept pairs of a cluster: with fewer, chance makes the clusters uneven."""
MIN_CLUSTERS = 4
ITERATIONS, SEED = 10, 20260122
LEAD = (
    "The features are clustered by k-means (FAISS); equal clusters mean that no kind of picture dominates. The "
    "effective number of clusters is exp(H), H the entropy of the clusters' shares (Hill 1973): as many clusters of "
    "equal size are as diverse."
)
MISSING = (
    "k-means of the features needs FAISS: pip install 'danqing-engine[faiss]', or faiss-gpu, and make the report again."
)


def balance_section(views: Sequence[View]) -> Section | None:
    """The section; None if a run has too few kept pairs with features.

    Runs side by side are clustered together if the same model computed their features.
    """
    drawn = [_features(view) for view in views]
    clusters = min(MAX_CLUSTERS, *(int(kept.sum()) // ROWS_PER_CLUSTER for _, kept in drawn))
    if clusters < MIN_CLUSTERS:
        return None
    try:
        import faiss  # noqa: F401
    except ImportError:
        return Section("balance", "Balance", MISSING)
    models = {str(view.run.manifest.get("models", {}).get("image_embedding")) for view in views}
    if len(models) == 1 and len({vectors.shape[1] for vectors, _ in drawn}) == 1:
        ends = np.cumsum([len(vectors) for vectors, _ in drawn])
        found = np.split(cluster(np.concatenate([vectors for vectors, _ in drawn]), clusters), ends[:-1])
    else:
        found = [cluster(vectors, clusters) for vectors, _ in drawn]
    return Section("balance", "Balance", LEAD, [_figure(views, found, [kept for _, kept in drawn], clusters)])


def cluster(vectors: np.ndarray, clusters: int) -> np.ndarray:
    """Clusters unit vectors by spherical k-means.

    Args:
        vectors: float32 (rows, dimension).
        clusters: number of clusters, at most `rows`.

    Returns:
        int64 (rows,), the cluster of each row.
    """
    import faiss

    means = faiss.Kmeans(
        vectors.shape[1],
        clusters,
        niter=ITERATIONS,
        seed=SEED,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),  # all rows, instead of a sample of them
    )
    means.train(vectors)
    nearest: np.ndarray = means.index.search(vectors, 1)[1]
    return nearest[:, 0]


def effective_number(sizes: np.ndarray) -> float:
    """The number of clusters of equal size with the same entropy: exp(-Σ p ln p).

    It is the diversity of order 1 of Hill, "Diversity and evenness", Ecology 54 (1973), doi:10.2307/1934352.

    Args:
        sizes: int (clusters,), not all 0.

    >>> round(effective_number(np.array([5, 5, 5, 0])), 6)
    3.0
    """
    shares = sizes[sizes > 0] / sizes.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _features(view: View) -> tuple[np.ndarray, np.ndarray]:
    """The features of rows of the sample, float32 (rows, dimension), and which of them are kept, boolean (rows,)."""
    sample = view.sample
    if "feature_row" not in sample.table.column_names:
        return np.empty((0, 0), np.float32), np.empty(0, bool)
    place = sample.table["feature_row"].fill_null(-1).to_numpy()
    rows = np.flatnonzero(place >= 0)
    rows = rows[np.linspace(0, len(rows) - 1, min(MAX_ROWS, len(rows))).astype(int)]
    shards = sample.table["shard_number"].to_numpy()[rows]

    def read(shard: int) -> np.ndarray:
        return read_feature_rows(view.run.features_path(shard), place[rows[shards == shard]]).astype(np.float32)

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        blocks = list(pool.map(read, np.unique(shards).tolist()))  # the sample is in the order of the shards
    return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32), sample.kept[rows]


def _figure(views: Sequence[View], found: Sequence[np.ndarray], kept: Sequence[np.ndarray], clusters: int) -> Figure:
    drawings, notes, numbers = [], [], []
    ranked = [
        [np.sort(np.bincount(some, minlength=clusters))[::-1] for some in (own[chosen], own)]
        for own, chosen in zip(found, kept, strict=True)
    ]
    largest = max(100 * sizes[0] / sizes.sum() for both in ranked for sizes in both)
    for both in ranked:
        lines = [
            Line([(rank, 100 * size / sizes.sum()) for rank, size in enumerate(sizes.tolist(), 1)], kind, name)
            for sizes, kind, name in zip(both, ("curve", "curve before"), ("kept", "all"), strict=True)
        ]
        plot = Plot("Share of the pairs in each cluster, largest first", "cluster, by size", "% of the pairs")
        drawings.append(curves(plot, lines, Scale(1, clusters, whole=True), Scale(0, largest)))
        effective = [effective_number(sizes) for sizes in both]
        sampled = "" if all(view.sample.is_whole for view in views) else " in the sample"
        notes.append(
            f"{clusters} clusters; effective number: {effective[1]:,.1f} of all {both[1].sum():,} pairs with features"
            f"{sampled}, {effective[0]:,.1f} of the {both[0].sum():,} kept ones"
        )
        numbers.append(
            {"clusters": clusters}
            | {
                which: {"pairs": int(sizes.sum()), "effective": round(e, 6), "sizes": sizes.tolist()}
                for which, sizes, e in zip(("kept", "all"), both, effective, strict=True)
            }
        )
    return Figure("balance", "Sizes of the clusters of pictures", drawings, notes, numbers)
