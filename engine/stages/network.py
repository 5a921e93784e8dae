"""Base classes of the stages that run one neural network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from danqing.engine.core.batch import Batch
from danqing.engine.stages.base import Context, Stage
from danqing.trt_models.run.session import rows_at_once


class ModelStage(Stage):
    """Runs the model that the recipe names for `role`."""

    role: ClassVar[str]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.session = context.models.session(self.role, context.device)

    @property
    def capacity(self) -> int:
        return rows_at_once(self.context.device, self.session)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Returns the network's inputs: name → array, rows first."""
        raise NotImplementedError

    def run(self, batch: Batch) -> dict[str, Any]:
        """Runs the network; returns its outputs: name → array on the device, rows first."""
        return self.session.run(**self.inputs(batch))

    def vendor_part(self, batch: Batch) -> Callable[[], int]:
        """The network on a full batch, made of the batch's rows."""
        rows = np.arange(self.capacity) % len(batch)
        inputs = {name: array[rows] for name, array in self.inputs(batch).items()}

        def run() -> int:
            self.session.run(**inputs)
            return len(rows)

        return run


class TextModelStage(ModelStage):
    """Runs a model of texts, whose `run` groups the rows of a batch by width."""

    def vendor_part(self, batch: Batch) -> Callable[[], int]:
        """The network on a full batch, made of the batch's rows."""
        full = batch.take(np.arange(self.capacity) % len(batch))

        def run() -> int:
            self.run(full)
            return len(full)

        return run
