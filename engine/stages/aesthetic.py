"""Is the picture pleasing to look at? No line of Table 6, but what many a recipe since LAION asks."""

from __future__ import annotations

import pyarrow as pa

from engine.batch import Batch
from engine.stages.base import Context, Stage
from trt_models.session import rows_at_once


class Aesthetic(Stage):
    """`aesthetic`: the rating, 1 to 10, that the predictor expects people to give."""

    name = "aesthetic"
    needs = ("aesthetic_input",)
    produces = {"aesthetic": pa.float32()}
    capacity = 64

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.session = context.models.session("aesthetics", context.device)
        self.capacity = rows_at_once(context.device, self.capacity)

    def __call__(self, batch: Batch) -> None:
        batch["aesthetic"] = self.session.run(pixels=batch["aesthetic_input"])["aesthetic"]
