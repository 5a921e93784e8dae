"""FAISS as an index. Only this file imports FAISS.

FAISS finds the k nearest folded vectors of each row. Those above the bound are candidates, which are decided in float64
as in `neighbours`. A row whose k-th nearest is still above the bound is *full*: it may have more candidates, so it is
asked again with a larger k, and finally compared with all rows, tile by tile. So every pair above the bound is decided,
however many copies a row has.

On a GPU, FAISS works on our stream, in our arrays. Its flat index stores float16, but takes rows and queries in float32
only (`add_ex` of float16 fails with "unsupported numeric type"); the bound allows for the rounding (`products`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from danqing.engine.core.device import Device
from danqing.engine.core.progress import Progress, Silent
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.folding import CHECK_COST, Folding
from danqing.engine.decide.dedup.index import Index
from danqing.engine.decide.dedup.lists import TRAINING_ROWS_PER_LIST, list_count
from danqing.engine.decide.dedup.neighbours import join_rows, nearest_rows, split_range
from danqing.engine.decide.dedup.sample import HELD_OUT_ROWS, NeighbourSample
from danqing.engine.recipe.outcome import Recall
from danqing.kernels.neighbours.pairs import choose_nearest, join_found
from danqing.kernels.portable import address_of

NEAREST = (64, 512, 2048)
"""Rows that are found for a row, at first and when it is asked again; FAISS finds at most 2,048 on a GPU."""
RESULTS = 1 << 20
"""Results of one query, 12 bytes each: those of 16,384 rows at first."""
MIN_ROWS_FOR_LISTS = 8192
"""Below this number of rows all pairs are compared, even if the recipe allows a recall below 1."""
PROBES = (1, 2, 4, 8, 16, 32, 64)
"""Inverted lists that a row is compared with, in each round. If the recall is still too low, all pairs are compared."""

Decide = Callable[[Any, Any, Any], None]
"""Decides candidates: rows that were asked for, int64 (n,); float32 and int64 (n, k), their products and rows."""


class FaissIndex(Index):
    """Compares all pairs with a flat index; for a recall below 1, the rows of inverted lists."""

    @classmethod
    def missing(cls, kind: str) -> str:
        flat, install = "IndexFlatIP", "pip install 'danqing-engine[faiss]'"
        if kind == "cuda":
            flat, install = "GpuIndexFlatIP", "pip install faiss-gpu (instead of faiss-cpu)"
        try:
            import faiss
        except ImportError as problem:
            return f"{problem}; {install}"
        if not hasattr(getattr(faiss, flat, None), "search_ex"):
            return f"FAISS {faiss.__version__} has no {flat}.search_ex; {install}, 1.15 or newer"
        return ""

    def join(
        self, features: Features, within: float, parent: Any, known: int = 0, progress: Progress | None = None
    ) -> Recall | None:
        if known == len(features):
            return None
        rows, decide = features.device.xp.arange(known, len(features)), _join(features, within, parent)

        def rounds() -> Iterator[None]:
            search = Search(features, within, list_count(len(features)))
            for probes in PROBES:
                search.index.probes = probes
                search.ask(features, rows, decide, progress)
                yield

        def join_all() -> None:
            full = Search(features, within).ask(features, rows, decide, progress)
            join_rows(features, full, within, parent, progress)

        if self.recall == 1 or len(features) < MIN_ROWS_FOR_LISTS:
            join_all()
            return None
        sample = NeighbourSample(features, within, progress)
        if not sample.satisfied(self.recall, parent, rounds()):
            join_all()
        return sample.recall(parent, HELD_OUT_ROWS)

    def join_across(
        self, features: Features, within: float, parent: Any, known: int, progress: Progress | None = None
    ) -> None:
        if not 0 < known < len(features):
            return
        rows, decide = features.device.xp.arange(known, len(features)), _join(features, within, parent)
        full = Search(features.take(slice(known)), within).ask(features, rows, decide, progress)
        join_rows(features, full, within, parent, progress, known)

    def nearest(
        self, features: Features, others: Features, within: float, progress: Progress | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        if not len(features) or not len(others):
            return nearest_rows(features, others, within, progress)
        device, xp = features.device, features.device.xp
        nearest, cosine = xp.full(len(features), -1), xp.full(len(features), np.nan)

        def decide(asked: Any, products: Any, found: Any) -> None:
            bound = 1 - within - features.products.slack
            pairs = (products, found, bound, 1 - within, asked, features.rows, others.rows, cosine, nearest)
            choose_nearest.launch(device, len(asked), *pairs)

        full = Search(others, within).ask(features, xp.arange(len(features)), decide, progress)
        rows, distances, places = device.down(nearest), device.down(1 - cosine), device.down(full)
        rows[places], distances[places] = nearest_rows(features.take(full), others, within, progress)
        return rows, distances


def _join(features: Features, within: float, parent: Any) -> Decide:
    """Joins the groups of rows and of those candidates whose cosine distance is below `within`."""

    def decide(asked: Any, products: Any, found: Any) -> None:
        bound = 1 - within - features.products.slack
        pairs = (products, found, bound, 1 - within, asked, features.rows, parent)
        join_found.launch(features.device, found.size, *pairs)

    return decide


class Search:
    """Folded vectors in an index of FAISS.

    Args:
        features: the rows to search in, one or more.
        within: cosine distance of the pairs that are looked for.
        lists: number of inverted lists; 0 for a flat index.
    """

    def __init__(self, features: Features, within: float, lists: int = 0) -> None:
        self.rows, self.bound = len(features), 1 - within - features.products.slack
        # As many false candidates of a row as places for them, `NEAREST`, cost as much as vectors that are not folded.
        self.fold = Folding.fit(features, 1 - within, max(lists, self.rows // (NEAREST[0] * CHECK_COST), 1))
        training = np.linspace(0, self.rows - 1, min(TRAINING_ROWS_PER_LIST * lists, self.rows) or 1).astype(np.int64)
        vectors = self._folded(features.take(features.device.up(training)))
        self.index = Vectors(features.device, vectors.shape[1], lists)
        if lists:
            self.index.train(vectors)
        for start, stop in split_range(0, self.rows, features.products.block):
            self.index.add(self._folded(features.take(slice(start, stop))))

    def ask(self, features: Features, rows: Any, decide: Decide, progress: Progress | None = None) -> Any:
        """Decides the candidates of some rows.

        Args:
            features: the rows that are asked for, and others.
            rows: int64 (n,), their numbers.
            decide: gets every candidate once or more often.
            progress: receives the number of comparisons.

        Returns:
            int64, the full rows: they may have more candidates.
        """
        progress, xp = progress or Silent(), features.device.xp
        for k in NEAREST:
            width, full = min(k, self.rows), [rows[:0]]
            progress.expect(len(rows) * self.rows, 1)
            for start, stop in split_range(0, len(rows), RESULTS // k):
                asked = rows[start:stop]
                products, found = self.index.search(self._folded(features.take(asked)), width)
                decide(asked, products, found)
                if width < self.rows:
                    full.append(asked[products[:, -1] > self.bound])
                progress.advance((stop - start) * self.rows)
            rows = xp.concatenate(full)
        return rows

    def _folded(self, features: Features) -> Any:
        return self.fold(features).astype(np.float32, copy=False)


class Vectors:
    """An index of FAISS for inner products, on a CPU or a GPU; takes and returns arrays of the device.

    Args:
        device: where the vectors are.
        width: numbers of a vector.
        lists: number of inverted lists; 0 for a flat index.
    """

    def __init__(self, device: Device, width: int, lists: int = 0) -> None:
        import faiss

        self.faiss, self.device = faiss, device
        if device.kind == "cpu":
            faiss.omp_set_num_threads(device.threads)
            flat = faiss.IndexFlatIP(width)
            self.index = faiss.IndexIVFFlat(flat, width, lists, faiss.METRIC_INNER_PRODUCT) if lists else flat
        else:
            resources = faiss.StandardGpuResources()
            resources.setDefaultStream(device.number, faiss.cast_integer_to_cudastream_t(device.stream))
            config = faiss.GpuIndexIVFFlatConfig() if lists else faiss.GpuIndexFlatConfig()
            config.device = device.number
            if lists:
                self.index = faiss.GpuIndexIVFFlat(resources, width, lists, faiss.METRIC_INNER_PRODUCT, config)
            else:
                config.useFloat16 = True
                self.index = faiss.GpuIndexFlatIP(resources, width, config)
        if lists:
            self.index.cp.min_points_per_centroid = 1  # otherwise it warns of few training rows

    @property
    def probes(self) -> int:
        """Number of inverted lists that a query is compared with."""
        return int(self.index.nprobe)

    @probes.setter
    def probes(self, count: int) -> None:
        self.index.nprobe = count

    def train(self, vectors: Any) -> None:
        """Learns the centres of the inverted lists from vectors, float32 (n, width)."""
        self.index.train_ex(len(vectors), self._pointer(vectors), self.faiss.Float32)

    def add(self, vectors: Any) -> None:
        """Adds vectors, float32 (n, width)."""
        self.index.add_ex(len(vectors), self._pointer(vectors), self.faiss.Float32)

    def search(self, queries: Any, k: int) -> tuple[Any, Any]:
        """Finds the k vectors with the greatest products.

        Args:
            queries: float32 (n, width).
            k: at most 2,048 on a GPU.

        Returns:
            The products, float32 (n, k), in descending order; and the vectors' numbers, int64 (n, k). Where fewer are
            found, the product is -inf or the least number.
        """
        faiss, shape = self.faiss, (len(queries), k)
        products, found = self.device.xp.empty(shape, np.float32), self.device.xp.empty(shape, np.int64)
        out = faiss.cast_integer_to_float_ptr(address_of(products)), faiss.cast_integer_to_idx_t_ptr(address_of(found))
        self.index.search_ex(len(queries), self._pointer(queries), faiss.Float32, k, *out)
        return products, found

    def _pointer(self, vectors: Any) -> Any:
        return self.faiss.cast_integer_to_void_ptr(address_of(vectors))
