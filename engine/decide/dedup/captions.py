"""Groups captions whose shingles are similar: candidates by MinHash, decided by their Jaccard distance.

Signatures are not stored: they would take as much memory as the shingles, and only estimate the distance. Each band's
keys are computed when the band is searched, so memory does not depend on the number of bands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from danqing.engine.core.device import Device
from danqing.engine.core.progress import Progress, Silent
from danqing.engine.core.strings import Strings
from danqing.engine.decide.dedup.fingerprints import number_distinct
from danqing.kernels.neighbours.components import find_components
from danqing.kernels.text.hashes import (
    BAND_HASHES,
    Shingles,
    find_most_similar,
    find_shingles,
    join_similar,
    measure_jaccard,
    write_band_keys,
)

MIN_RECALL = 0.999
"""Least probability that a pair at the distance `within` shares a band's key; nearer pairs have a higher one."""


def bands_for(within: float) -> int:
    """Number of bands with which pairs at a Jaccard distance of `within` are found with probability `MIN_RECALL`.

    >>> [bands_for(within) for within in (1e-20, 0.1, 0.2, 0.3, 0.5)]
    [1, 7, 14, 26, 108]
    """
    missed = max(1 - (1 - within) ** BAND_HASHES, 1e-12)  # above 0, for the logarithm
    return math.ceil(math.log(1 - MIN_RECALL) / math.log(missed))


class SimilarTexts:
    """Texts that are connected by chains of pairs within a Jaccard distance. Equal texts are compared once.

    Args:
        device: where the texts are compared.
        numbers: int (rows,), the number of each row's text.
        texts: the texts, by number.
        within: the distance, above 0 and below 1.
        progress: counts the bands of the texts.

    Attributes:
        group: int64 (rows,), on the host: the first row of each row's group.
    """

    def __init__(
        self, device: Device, numbers: np.ndarray, texts: pa.Array, within: float, progress: Progress | None = None
    ) -> None:
        self.device = device
        distinct, firsts, self._number = number_distinct(numbers)
        self._shingles = find_shingles(device, _strings(device, texts, distinct))
        parent = device.xp.arange(len(distinct))
        for keys, order in _sorted_bands(device, self._shingles, within, progress):
            join_similar.launch(device, len(keys), self._shingles, keys, order, within, parent)
        self.group = firsts[device.down(find_components(device, parent))[self._number]]

    def distances(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Computes the Jaccard distance of each row to another one.

        Args:
            rows, others: int64 (n,).

        Returns:
            float64 (n,), on the host.
        """
        left, right = self.device.up(self._number[rows]), self.device.up(self._number[others])
        out = self.device.xp.empty(len(others))
        measure_jaccard.launch(self.device, len(others), left, right, self._shingles, out)
        return self.device.down(out)


def nearest_texts(
    device: Device, numbers: np.ndarray, texts: pa.Array, known: int, within: float, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the known row with the most similar text for each other row; of equally similar ones, the first.

    Args:
        device: where the texts are compared.
        numbers: int (rows,), the number of each row's text.
        texts: the texts, by number.
        known: the first `known` rows are known, the others look for them.
        within: largest Jaccard distance; 0 for equal texts.
        progress: counts the bands of the texts.

    Returns:
        For each of the other rows, on the host: the known row, int64, -1 if there is none; and its Jaccard distance,
        float64.
    """
    xp, (distinct, firsts, number) = device.xp, number_distinct(numbers)
    known_texts = int(np.count_nonzero(firsts < known))  # the first ones, since texts are numbered by their first rows
    nearest = xp.arange(len(distinct))
    nearest[known_texts:] = -1
    distance = xp.where(nearest >= 0, 0.0, np.inf)
    if within:
        shingles = find_shingles(device, _strings(device, texts, distinct))
        for keys, order in _sorted_bands(device, shingles, within, progress):
            begins = xp.searchsorted(keys, keys)
            arguments = (keys, order, begins, known_texts, within, distance, nearest)
            find_most_similar.launch(device, len(keys), shingles, *arguments)
    others = number[known:]
    found = device.down(nearest)[others]
    return np.where(found >= 0, firsts[found], -1), device.down(distance)[others]


def _strings(device: Device, texts: pa.Array, rows: np.ndarray) -> Strings:
    return Strings.of(texts.take(pa.array(rows))).on(device)


def _sorted_bands(
    device: Device, shingles: Shingles, within: float, progress: Progress | None
) -> Iterator[tuple[Any, Any]]:
    """Yields each band's keys in ascending order, uint64 (texts,), and the text of each key, int64 (texts,)."""
    progress, texts, bands = progress or Silent(), len(shingles.begins), bands_for(within)
    progress.expect(bands * texts, 1)
    keys = device.xp.empty(texts, np.uint64)
    for band in range(bands):
        write_band_keys.launch(device, texts, shingles, band, keys)
        order = device.xp.argsort(keys, kind="stable")
        yield keys[order], order
        progress.advance(texts)
