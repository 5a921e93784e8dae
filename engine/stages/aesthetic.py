"""Aesthetic rating of the picture. The paper does not use it; many recipes since LAION-Aesthetics do."""

from __future__ import annotations

from typing import Any

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import produced
from danqing.engine.stages.network import ModelStage


class Aesthetic(ModelStage):
    """`aesthetic`: the predicted mean rating by people, 1 to 10."""

    name = "aesthetic"
    role = "aesthetics"
    needs = ("aesthetic_input",)
    image_inputs = {"aesthetic_input": None}
    produces = produced("aesthetic")

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"pixels": batch["aesthetic_input"]}

    def __call__(self, batch: Batch) -> None:
        batch["aesthetic"] = self.run(batch)["aesthetic"]
