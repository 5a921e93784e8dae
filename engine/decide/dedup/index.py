"""Index: a search for pairs of near rows. All exact indexes lead to the same groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import Progress
from danqing.engine.core.registry import Registry
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.lists import join_likely
from danqing.engine.decide.dedup.neighbours import join_neighbours, join_rows, nearest_rows
from danqing.engine.recipe.outcome import Recall

AUTO = "auto"
"""Instead of the name of an index: one that suits the device and the recall (`choose_index`)."""


class Index(ABC):
    """Finds pairs of near rows and joins them into groups.

    An index may find candidates in any way; it must join exactly those whose float64 cosine distance of the stored
    features is below the threshold (`kernels.neighbours.pairs`).

    Args:
        recall: share of the near pairs that must end up in one group; an exact index finds all at any value.
    """

    def __init__(self, recall: float = 1.0) -> None:
        self.recall = recall

    @classmethod
    def missing(cls, kind: str) -> str:
        """Returns what to install before the index can be used on a kind of device; empty if nothing is missing."""
        return ""

    @abstractmethod
    def join(
        self, features: Features, within: float, parent: Any, known: int = 0, progress: Progress | None = None
    ) -> Recall | None:
        """Joins the groups of all rows whose cosine distance is below `within`.

        Args:
            features: the rows.
            within: cosine distance, 0 to 2.
            parent: int64 (rows,) on the device, the forest of groups, changed in place
                (`kernels.neighbours.components`).
            known: number of first rows that were compared with each other before.
            progress: counts the comparisons.

        Returns:
            The measured recall; None if all near pairs were found.
        """

    def join_across(
        self, features: Features, within: float, parent: Any, known: int, progress: Progress | None = None
    ) -> None:
        """Joins the groups of the first `known` rows and of the others where their cosine distance is below `within`.

        All pairs of a known row and another one are compared, and no others. For the arguments see `join`.
        """
        join_rows(features, features.device.xp.arange(known, len(features)), within, parent, progress, known)

    def nearest(
        self, features: Features, others: Features, within: float, progress: Progress | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest row of `others` for each row, exactly; see `nearest_rows`."""
        return nearest_rows(features, others, within, progress)


class Tiles(Index):
    """Compares all pairs, tile by tile (`neighbours`)."""

    def join(
        self, features: Features, within: float, parent: Any, known: int = 0, progress: Progress | None = None
    ) -> None:
        join_neighbours(features, within, parent, known, progress)


class InvertedFileIndex(Index):
    """Compares the rows of inverted lists until the recall is reached (`lists`)."""

    def join(
        self, features: Features, within: float, parent: Any, known: int = 0, progress: Progress | None = None
    ) -> Recall:
        return join_likely(features, within, self.recall, parent, known, progress)


INDEXES: Registry[type[Index]] = Registry(
    "danqing.indexes",
    {
        "tiles": "danqing.engine.decide.dedup.index:Tiles",
        "lists": "danqing.engine.decide.dedup.index:InvertedFileIndex",
        "faiss": "danqing.engine.decide.dedup.faiss_index:FaissIndex",
    },
    "--neighbours",
)


def choose_index(name: str, kind: str, recall: float = 1.0) -> str:
    """Returns the name of the index of a search.

    Args:
        name: an index; or `auto`: `tiles` for all pairs, which is the fastest on every device (BENCHMARKS.md); for a
            lower recall `faiss` on a GPU if it is installed, else `lists`. `lists` finds all pairs as `tiles` does.
        kind: of the device, `cpu` or `cuda`.
        recall: least share of the near pairs that must be found.

    Raises:
        DanqingError: there is no such index, or its library is not installed.

    >>> choose_index("auto", "cpu"), choose_index("auto", "cpu", 0.99), choose_index("tiles", "cpu", 0.99)
    ('tiles', 'lists', 'tiles')
    """
    if name == AUTO:
        name = "faiss" if recall < 1 and kind == "cuda" and not INDEXES["faiss"].missing(kind) else "lists"
    elif missing := INDEXES.named(name).missing(kind):
        raise DanqingError(f"--neighbours {name}: {missing}")
    return "tiles" if name == "lists" and recall == 1 else name
