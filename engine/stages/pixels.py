"""Statistics of the decoded pixels, which show flat, blurred and empty pictures."""

from __future__ import annotations

import pyarrow as pa

from danqing.engine.core.batch import Batch
from danqing.engine.stages.base import Stage
from danqing.kernels.pictures.pixels import FIGURES, pixel_statistics


class PixelStatistics(Stage):
    """`pixel_std`, `laplacian_variance` and `image_entropy` at full resolution; see `kernels.pictures.pixels`."""

    name = "pixels"
    needs = ("pixels",)
    produces = dict.fromkeys(FIGURES, pa.float64())

    def __call__(self, batch: Batch) -> None:
        figures = self.context.device.down(pixel_statistics(self.context.device, batch["pixels"]))
        for position, name in enumerate(FIGURES):
            batch[name] = figures[:, position]
