"""Groups of rows by a column: equal values, hashes that differ in a few bits, similar texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danqing.engine.core.device import Device
from danqing.engine.core.progress import Progress
from danqing.engine.decide.columns import Columns
from danqing.engine.decide.dedup.captions import SimilarTexts
from danqing.engine.decide.dedup.fingerprints import group_equal, group_hashes
from danqing.engine.recipe.criteria import Redundancy

Distances = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Computes the distances of rows to others, int64 (n,) each: float64 (n,)."""


def group_values(
    columns: Columns, criterion: Redundancy, rows: np.ndarray, device: Device, progress: Progress | None = None
) -> tuple[np.ndarray, Distances]:
    """Groups rows by the criterion's column. An empty text is in no group.

    Args:
        columns: of the run.
        criterion: its column and the distance within which rows are joined.
        rows: int64 (rows,), ascending.
        device: compares hashes and texts.
        progress: counts comparisons.

    Returns:
        (rows,), the first row of each one's group; and the distances of rows. Rows are positions in `rows`.
    """
    name, within = criterion.column, criterion.within
    if not within:
        keys = columns.keys(name, rows)
        group = group_equal(keys)
        if keys.ndim == 2:
            group = _ungroup(group, np.all(keys == 0, axis=1))
        return group, lambda members, others: np.zeros(len(members))
    column = columns.take(name, rows)
    if pa.types.is_string(column.type):
        encoded = encode(column)
        similar = SimilarTexts(device, encoded.indices.to_numpy(), encoded.dictionary, within, progress)
        return _ungroup(similar.group, is_empty(column)), similar.distances
    hashes = column.to_numpy()
    group = group_hashes(device, hashes, int(within))
    return group, lambda members, others: np.bitwise_count(hashes[members] ^ hashes[others]).astype(float)


def encode(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Numbers the values of a column; texts get 64-bit offsets, since they may exceed 2 GiB."""
    column = column.cast(pa.large_string()) if pa.types.is_string(column.type) else column
    return column.dictionary_encode().combine_chunks()


def is_empty(column: pa.ChunkedArray) -> np.ndarray:
    """Boolean (rows,): whether each text is empty."""
    empty: np.ndarray = pc.binary_length(column).to_numpy() == 0
    return empty


def _ungroup(group: np.ndarray, empty: Any) -> np.ndarray:
    """Takes the rows with an empty text, boolean (rows,), out of their group, which has no other rows."""
    return np.where(empty, np.arange(len(group)), group)
