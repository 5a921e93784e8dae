"""Measures the recall of a neighbour search on sample rows, whose neighbours are found exactly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from danqing.engine.core.progress import Progress
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.neighbours import multiply_tiles
from danqing.engine.recipe.outcome import Recall
from danqing.kernels.neighbours.pairs import count_joined, list_near

RECALL_SAMPLE_ROWS = 4096
"""Rows whose neighbours are found exactly."""
MAX_NEIGHBOURS = 64
"""Neighbours that are stored per sample row; further ones are ignored."""
STOPPING_ROWS, HELD_OUT_ROWS = slice(0, None, 2), slice(1, None, 2)
"""Even sample rows decide when the search stops; odd rows are held out and measure the reported recall."""


class NeighbourSample:
    """Evenly spaced rows and their exact neighbours, found by comparing them with all rows.

    Args:
        features: all rows.
        within: cosine distance below which two rows are neighbours.
        progress: receives the number of comparisons.

    Attributes:
        rows: int64 (samples,), on the device.
        counts: int64 (samples,), neighbours stored per sample row.
        near: int64 (samples, MAX_NEIGHBOURS), the neighbours.
    """

    def __init__(self, features: Features, within: float, progress: Progress | None = None) -> None:
        xp, count = features.device.xp, min(RECALL_SAMPLE_ROWS, len(features))
        self.device, bound = features.device, 1 - within - features.products.slack
        self.rows = self.device.up(np.linspace(0, len(features), count, endpoint=False).astype(np.int64))
        self.counts, self.near = xp.zeros(count, np.int64), xp.empty((count, MAX_NEIGHBOURS), np.int64)
        for left, right, product in multiply_tiles(features.take(self.rows), features, within, progress):
            pairs = (product, bound, self.rows[left], right, 1 - within, features.rows)
            list_near.launch(self.device, len(product), *pairs, self.counts[left], self.near[left])

    def recall(self, parent: Any, part: slice = slice(None)) -> Recall:
        """Measures which share of the pairs of neighbours is in one group.

        Args:
            parent: int64 (rows,), the groups as a forest; see `kernels.neighbours.components`.
            part: which sample rows count.
        """
        return Recall(int(self._joined(parent)[part].sum()), int(self.counts[part].sum()))

    def assures(self, recall: float, parent: Any, part: slice = slice(None)) -> bool:
        """Returns whether the recall of all rows is at least `recall`, with a margin of two standard deviations.

        The misses of one row are correlated (its group was split), so the deviation is that of a sum over rows.

        Args:
            recall: the share, 0 to 1.
            parent, part: as in `recall`.
        """
        missed = (self.counts - self._joined(parent))[part].astype(np.float64)
        allowed = (1 - recall) * float(self.counts[part].sum())
        return float(missed.sum()) + 2 * float((missed**2).sum()) ** 0.5 <= allowed

    def satisfied(self, recall: float, parent: Any, rounds: Iterable[Any]) -> bool:
        """Runs the rounds of a search until `STOPPING_ROWS` assure the recall.

        Args:
            recall, parent: as in `assures`.
            rounds: each step is a round, which unites rows in `parent`.

        Returns:
            Whether the recall is assured, or there are no pairs to measure it by.
        """
        for _ in rounds:
            if self.recall(parent, STOPPING_ROWS).pairs and self.assures(recall, parent, STOPPING_ROWS):
                return True
        return not self.recall(parent, STOPPING_ROWS).pairs

    def _joined(self, parent: Any) -> Any:
        joined = self.device.xp.empty_like(self.counts)
        count_joined.launch(self.device, len(joined), self.rows, self.counts, self.near, parent, joined)
        return joined
