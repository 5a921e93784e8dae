"""Is the picture pleasing to look at? No line of Table 6, but what many a recipe since LAION asks."""

from __future__ import annotations

from typing import Any

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import produced
from danqing.engine.stages.network import Network


class Aesthetic(Network):
    """`aesthetic`: the rating, 1 to 10, that the predictor expects people to give."""

    name = "aesthetic"
    role = "aesthetics"
    needs = ("aesthetic_input",)
    image_inputs = {"aesthetic_input": None}
    produces = produced("aesthetic")

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"pixels": batch["aesthetic_input"]}

    def __call__(self, batch: Batch) -> None:
        batch["aesthetic"] = self.run(batch)["aesthetic"]
