"""A cloud of words as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from danqing.engine.report.figures import advance, svg

LINE_EM = 1.16
"""Height of a line of text in ems."""
CLOUD_WIDTH, CLOUD_HEIGHT = 960, 380
CLOUD_MAX_PIXELS, CLOUD_MIN_PIXELS = 64, 13
"""Font sizes of the most and the least frequent word of a cloud."""
CLOUD_SHARE = 0.55
"""Share of the cloud's area that words may take."""
SPIRAL_STEPS, GOLDEN_RADIANS = 6000, 2.39996323
CELL_PIXELS = 4
"""Side of the squares that the boxes of a cloud's words are made of."""


def word_cloud(label: str, words: Sequence[tuple[str, int]]) -> Markup:
    """Draws words with a size that grows with the square root of their count.

    Each word is put at the first place on a spiral from the centre, Vogel's, whose points are equally dense everywhere,
    where its box meets no other box.

    Args:
        label: see `Plot`.
        words: word and count, the most frequent first; those without room are left out.
    """
    most = words[0][1] if words else 1
    area = sum(advance(word) * LINE_EM * count / most for word, count in words) or 1.0
    largest = min(CLOUD_MAX_PIXELS, math.sqrt(CLOUD_SHARE * CLOUD_WIDTH * CLOUD_HEIGHT / area))
    taken = np.zeros((CLOUD_HEIGHT // CELL_PIXELS, CLOUD_WIDTH // CELL_PIXELS), np.int32)
    room = np.array(taken.shape[::-1])
    steps = np.arange(SPIRAL_STEPS)
    angles, radii = steps * GOLDEN_RADIANS, np.sqrt(steps / SPIRAL_STEPS)
    spiral = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] * room * 0.62 + room / 2
    parts = []
    for rank, (word, count) in enumerate(words):
        size = max(CLOUD_MIN_PIXELS, largest * math.sqrt(count / most))
        cells = np.ceil(np.array([advance(word) * size + 6, LINE_EM * size]) / CELL_PIXELS).astype(int)
        corners = np.floor(spiral - cells / 2).astype(int)
        corners = corners[((corners >= 0) & (corners + cells <= room)).all(1)]
        sums = np.pad(taken.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        (left, top), (right, bottom) = corners.T, (corners + cells).T
        free = np.flatnonzero(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left] == 0)
        if not len(free):
            continue
        (column, row), (columns, rows) = corners[free[0]].tolist(), cells.tolist()
        taken[row : row + rows, column : column + columns] = 1
        x, y = (column + columns / 2) * CELL_PIXELS, (row + rows / 2) * CELL_PIXELS
        parts.append(
            f'<text x="{x:.1f}" y="{y + 0.35 * size:.1f}" font-size="{size:.1f}" text-anchor="middle" '
            f'class="word word{min(rank // 8, 3)}"><title>{escape(word)}: {count:,}</title>{escape(word)}</text>'
        )
    if not parts:
        return svg(CLOUD_WIDTH, CLOUD_HEIGHT, label, parts)
    (left, width), (top, height) = (_extent(taken.sum(axis)) for axis in (0, 1))
    return svg(width, height, label, parts, left, top)


def _extent(used: np.ndarray) -> tuple[int, int]:
    """First pixel and number of pixels of the range of cells that are used."""
    at = np.flatnonzero(used)
    return int(at[0]) * CELL_PIXELS, int(at[-1] - at[0] + 1) * CELL_PIXELS
