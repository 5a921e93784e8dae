"""What a stage is: it adds named columns to a batch and touches nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import Column
from danqing.engine.core.device import Device
from danqing.engine.core.memory import Memory
from danqing.trt_models.model_set import ModelSet


@dataclass(frozen=True)
class Context:
    """Everything that stages need to open. `resizer`: see `engine.stages.resize.open_resizer`."""

    device: Device
    models: ModelSet
    wanted: frozenset[str]
    blocked_domains: frozenset[str] = frozenset()
    max_pixels: int = 2**31 - 1
    user_dictionaries: tuple[Path, ...] = ()
    memory: Memory = field(default_factory=Memory)
    resizer: str = "auto"


class Stage:
    """One step of SCORE.

    A row that cannot go on gets its reason, in words, in the batch's `error` column; it leaves the stream after
    the stage, alone. `produces`: the columns that the stage adds, by name (`engine.core.columns.produced`).
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    produces: ClassVar[Mapping[str, Column]]

    def __init__(self, context: Context) -> None:
        self.context = context

    @property
    def capacity(self) -> float | None:
        """The weight of a full batch; None: batches are taken as they come."""
        return None

    @staticmethod
    def weights(batch: Batch) -> np.ndarray:
        """What each row adds to a batch: by default, one row."""
        return np.ones(len(batch))

    def __call__(self, batch: Batch) -> None:
        raise NotImplementedError

    def alone(self, batch: Batch) -> Callable[[], int] | None:
        """What cannot be spared of this stage's work (the codec, the network), ready to run on these rows; it returns
        the pairs it has done. None: the stage is all our own, and only memory sets it a limit."""
        return None
