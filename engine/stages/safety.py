"""Is the picture safe to show?"""

from __future__ import annotations

import pyarrow as pa

from engine.batch import Batch
from engine.stages.base import Context, Stage
from trt_models.session import rows_at_once


class ImageSafety(Stage):
    """`unsafe_image`: the classifier's probability of unsafe content."""

    name = "image safety"
    needs = ("safety_input",)
    produces = {"unsafe_image": pa.float32()}
    capacity = 64

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.session = context.models.session("image_safety", context.device)
        self.capacity = rows_at_once(context.device, self.capacity)

    def __call__(self, batch: Batch) -> None:
        batch["unsafe_image"] = self.session.run(pixels=batch["safety_input"])["probability"]
