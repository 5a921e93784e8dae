"""Probability that a picture is unsafe."""

from __future__ import annotations

from typing import Any

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import produced
from danqing.engine.stages.network import ModelStage


class ImageSafety(ModelStage):
    """`unsafe_image`: the classifier's probability of unsafe content, 0 to 1."""

    name = "image safety"
    role = "image_safety"
    needs = ("safety_input",)
    image_inputs = {"safety_input": None}
    produces = produced("unsafe_image")

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"pixels": batch["safety_input"]}

    def __call__(self, batch: Batch) -> None:
        batch["unsafe_image"] = self.run(batch)["probability"]
