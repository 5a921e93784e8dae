"""Stage: one step of SCORE. It adds named columns to a batch and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import ClassVar

import numpy as np

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import Column
from danqing.engine.core.device import Device
from danqing.engine.core.memory import DEFAULT_MAX_PIXELS, Memory
from danqing.engine.stages.vlm.client import Server
from danqing.kernels.text.hosts import Domains
from danqing.trt_models.card import ImageInput
from danqing.trt_models.model_set import ModelSet


@dataclass(frozen=True)
class Context:
    """The resources that stages open with.

    Attributes:
        device: computes and holds the columns.
        models: the recipe's models, by role.
        wanted: the columns that the plan uses.
        blocked_domains: the domains of the block list; None without one.
        max_pixels: pictures with more pixels are refused.
        user_dictionaries: files of words for jieba.
        memory: bounds of a batch.
        resizer: see `engine.stages.resize.open_resizer`.
        vlm: the vision-language model that criteria ask; None without one.
        stopped: set when the run ends with an error or is interrupted, so that no stage waits for a server any longer.
    """

    device: Device
    models: ModelSet
    wanted: frozenset[str]
    blocked_domains: Domains | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    user_dictionaries: tuple[Path, ...] = ()
    memory: Memory = field(default_factory=Memory)
    resizer: str = "auto"
    vlm: Server | None = None
    stopped: Event = field(default_factory=Event)


class Stage:
    """One step of SCORE.

    To fail a row, a stage writes the reason to the row's `error`; the row leaves the stream after the stage, and the
    other rows go on.

    Attributes:
        name: unique, shown in reports.
        needs: the columns that the stage reads.
        produces: the columns that the stage adds, by name (`engine.core.columns.produced`).
        role: key of the stage's model under `models` of a recipe; None without a model.
        model_columns: the columns in `produces` that depend on the model's outputs; None for all.
        image_inputs: columns in `needs` that `Resize` makes of the picture → their size, crop and interpolation; None
            for those on the card of the model.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    produces: ClassVar[Mapping[str, Column]]
    role: ClassVar[str | None] = None
    model_columns: ClassVar[tuple[str, ...] | None] = None
    image_inputs: ClassVar[Mapping[str, ImageInput | None]] = {}

    def __init__(self, context: Context) -> None:
        self.context = context

    @property
    def capacity(self) -> float | None:
        """Weight of a full batch, for which the stage collects rows; None: it takes every batch as it arrives."""
        return None

    @staticmethod
    def weights(batch: Batch) -> np.ndarray:
        """Weight of each row, float64 (rows,), in the unit of `capacity`; by default 1."""
        return np.ones(len(batch))

    def maker_of(self, column: str) -> str:
        """Names what computes a column, for error messages: the model in the stage's role, or the stage."""
        if self.role is None or (self.model_columns is not None and column not in self.model_columns):
            return f"the stage {self.name}"
        return f"the model {self.context.models.names[self.role]}"

    def __call__(self, batch: Batch) -> None:
        """Adds the columns of `produces`, on the device or the host, to a batch that has those of `needs`."""
        raise NotImplementedError

    def vendor_part(self, batch: Batch) -> Callable[[], int] | None:
        """Prepares a run of only the vendor part of the stage: the codec or the network.

        Returns:
            A function that runs it on the batch's rows and returns their number, which the profiler uses as the
            stage's upper bound; None if there is no vendor part.
        """
        return None
