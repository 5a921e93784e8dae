"""Index: a search for pairs of near rows. All exact indexes lead to the same groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from danqing.engine.core.progress import Progress
from danqing.engine.core.registry import Registry
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.lists import join_likely
from danqing.engine.decide.dedup.neighbours import join_neighbours
from danqing.engine.recipe.outcome import Recall


class Index(ABC):
    """Finds pairs of near rows and joins them into groups.

    An index may find candidates in any way; it must join exactly those whose float64 cosine distance of the stored
    features is below the threshold (`kernels.neighbours.pairs`).

    Args:
        recall: share of the near pairs that must end up in one group; an exact index finds all at any value.
    """

    def __init__(self, recall: float = 1.0) -> None:
        self.recall = recall

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
    },
)
