"""Statistics of the decoded pixels, which show flat, blurred and empty pictures."""

from __future__ import annotations

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import produced
from danqing.engine.stages.base import Stage
from danqing.kernels.pictures.pixels import STATISTICS, pixel_statistics


class PixelStatistics(Stage):
    """`pixel_std`, `laplacian_variance` and `image_entropy` at full resolution; see `kernels.pictures.pixels`."""

    name = "pixels"
    needs = ("pixels",)
    produces = produced(*STATISTICS)

    def __call__(self, batch: Batch) -> None:
        figures = self.context.device.down(pixel_statistics(self.context.device, batch["pixels"]))
        for position, name in enumerate(STATISTICS):
            batch[name] = figures[:, position]
