"""What share of near pairs a search joined, measured on rows whose neighbours are all looked up."""

from __future__ import annotations

from typing import Any

import numpy as np

from danqing.engine.core.progress import Progress, Silent
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.folding import Folding
from danqing.engine.decide.dedup.neighbours import Tile, spans
from danqing.engine.recipe.outcome import Recall
from danqing.kernels.neighbours.pairs import count_joined, list_near

SAMPLE, NEAR = 4096, 64
"""Rows whose neighbours are looked up, and how many of them are remembered of each."""
JUDGED, UNSEEN = slice(0, None, 2), slice(1, None, 2)
"""Those a search may look at to know when to stop, and those that tell how well it did."""


class Sample:
    """Some rows, evenly spread, and their neighbours, all rows compared with them."""

    def __init__(self, features: Features, within: float, progress: Progress | None = None) -> None:
        xp, progress, count = features.device.xp, progress or Silent(), min(SAMPLE, len(features))
        progress.expect(count * len(features), 1)
        self.device, products = features.device, features.products
        self.rows = self.device.up(np.linspace(0, len(features), count, endpoint=False).astype(np.int64))
        self.counts, self.near = xp.zeros(count, np.int64), xp.empty((count, NEAR), np.int64)
        fold, tile = Folding.fit(features, 1 - within), Tile(features)
        left = fold(features.take(self.rows))
        for start, stop in spans(0, len(features), products.tile):
            right = fold(features.take(slice(start, stop)))
            for top, bottom in spans(0, count, products.tile):
                some = slice(top, bottom)
                bound = 1 - within - products.slack
                pairs = (tile.product(left[some], right), bound, self.rows[some], xp.arange(start, stop))
                found = (1 - within, features.rows, self.counts[some], self.near[some])
                list_near.launch(self.device, bottom - top, *pairs, *found)
            progress.advance(count * (stop - start))

    def recall(self, parent: Any, part: slice = slice(None)) -> Recall:
        """What share of the neighbours of some of the rows is in one set.

        Args:
            parent: int64 (rows,), see `kernels.neighbours.components`.
        """
        return Recall(int(self._joined(parent)[part].sum()), int(self.counts[part].sum()))

    def assures(self, recall: float, parent: Any, part: slice = slice(None)) -> bool:
        """Whether at least such a share is, with two standard deviations to spare.

        One row's misses come together (its set was split), so it is rows that are drawn, not pairs.
        """
        missed = (self.counts - self._joined(parent))[part].astype(np.float64)
        allowed = (1 - recall) * float(self.counts[part].sum())
        return float(missed.sum()) + 2 * float((missed**2).sum()) ** 0.5 <= allowed

    def _joined(self, parent: Any) -> Any:
        joined = self.device.xp.empty_like(self.counts)
        count_joined.launch(self.device, len(joined), self.rows, self.counts, self.near, parent, joined)
        return joined
