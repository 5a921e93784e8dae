"""Similarity of picture and caption as LAION and DataComp state it: a cosine."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def similarity_of(distance: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Converts the L2 distance of two unit vectors to their cosine: cos = 1 - d² / 2, since d² = 2 - 2 cos.

    Args:
        distance: floating point (rows,), the column `alignment_distance`; nulls stay null.

    Returns:
        float32 (rows,), the column `similarity`.

    >>> similarity_of(pa.array([0.0, 1.0, 2.0, None])).to_pylist()
    [1.0, 0.5, -1.0, None]
    """
    wide = pc.cast(distance, pa.float64())
    return pc.cast(pc.subtract(1.0, pc.divide(pc.multiply(wide, wide), 2.0)), pa.float32())
