"""Aesthetic rating of the picture. The paper does not use it; many recipes since LAION-Aesthetics do."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from danqing.engine.core.batch import Batch
from danqing.engine.stages.network import ModelStage


class Aesthetic(ModelStage):
    """`aesthetic`: the predicted mean rating by people, 1 to 10."""

    name = "aesthetic"
    role = "aesthetics"
    needs = ("aesthetic_input",)
    produces = {"aesthetic": pa.float32()}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"pixels": batch["aesthetic_input"]}

    def __call__(self, batch: Batch) -> None:
        batch["aesthetic"] = self.run(batch)["aesthetic"]
