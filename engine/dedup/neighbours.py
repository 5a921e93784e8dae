"""Every pair of rows whose features are nearer than a cosine distance; none guessed, none missed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 2048
"""Rows a side of one tile of the similarity matrix: 16 MB of float32 at a time, whatever the number of rows."""

DOUBT = 1e-5
"""Float32 products of unit vectors are right to about 1e-6; nearer than this to the threshold they are recomputed."""


def edges(features: np.ndarray, within: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (left < right) with cosine distance < `within`, tile by tile.

    Brute force over the upper half of the similarity matrix: n² d / 2 multiply-adds, O(BLOCK²) memory beside the
    features. A pair too close to the threshold for float32 is decided in float64, so the outcome does not depend
    on how the matrix was cut into tiles.

    Args:
        features: float16 or float32 (rows, dimension), unit rows.

    Yields:
        Two int64 arrays of row numbers.
    """
    threshold = 1.0 - within
    blocks = [np.arange(start, min(start + BLOCK, len(features))) for start in range(0, len(features), BLOCK)]
    for i, rows in enumerate(blocks):
        block = _unit(features[rows])
        for columns in blocks[i:]:
            cosine = block @ _unit(features[columns]).T
            left, right = np.nonzero(cosine > threshold - DOUBT)
            score = cosine[left, right].astype(np.float64)
            left, right = rows[left], columns[right]
            upper = left < right
            left, right, score = left[upper], right[upper], score[upper]
            doubtful = np.flatnonzero(score < threshold + DOUBT)
            score[doubtful] = cosines(features, left[doubtful], right[doubtful])
            near = score > threshold
            if near.any():
                yield left[near], right[near]


def cosines(features: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64 cosine of each pair of rows."""
    out = np.empty(len(left))
    for start in range(0, len(left), BLOCK):
        part = slice(start, start + BLOCK)
        a, b = features[left[part]].astype(np.float64), features[right[part]].astype(np.float64)
        norms = np.sqrt((a * a).sum(1) * (b * b).sum(1))
        out[part] = (a * b).sum(1) / norms
    return out


def _unit(block: np.ndarray) -> np.ndarray:
    block = block.astype(np.float32)
    return block / np.linalg.norm(block, axis=1, keepdims=True)
