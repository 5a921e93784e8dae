"""Flat, blurred or empty: statistics of the decoded picture."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from engine.batch import Batch
from engine.stages.base import Stage
from kernels.pixels import pixel_statistics


class PixelStatistics(Stage):
    """`pixel_std`, `laplacian_variance`, `image_entropy` at full resolution; see `kernels.pixels`."""

    name = "pixels"
    needs = ("pixels",)
    produces = {"pixel_std": pa.float64(), "laplacian_variance": pa.float64(), "image_entropy": pa.float64()}

    def __call__(self, batch: Batch) -> None:
        figures = np.array(self.context.device.map(pixel_statistics, batch["pixels"]), np.float64).reshape(-1, 3)
        for position, name in enumerate(self.produces):
            batch[name] = figures[:, position]
