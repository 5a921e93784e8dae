"""What the steps of a training were like: means over the ranks, and rates."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from danqing.engine.core.errors import DanqingError
from danqing.engine.train.loader import TrainBatch
from danqing.engine.train.model import training_flops
from danqing.engine.train.ranks import Ranks

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 operations a second of a GPU, by a part of its name (NVIDIA's data sheets, SXM)."""


def peak_flops(device: torch.device) -> float | None:
    """Returns the peak of a GPU (`PEAK_FLOPS`); None for one that is not listed, and for a CPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


class Meter:
    """Sums up what the steps since the last line of the journal were like.

    Args:
        ranks: over which means are taken.
        model: the model that is trained.
        batch: pairs of a global batch.
    """

    def __init__(self, ranks: Ranks, model: Any, batch: int) -> None:
        self._ranks, self._model, self._batch = ranks, model, batch
        self._flops = training_flops(model.config) if ranks.device.type == "cuda" else 0.0
        self._peak = peak_flops(ranks.device)
        self._replaced = 0.0
        self._clear()

    def _clear(self) -> None:
        self._sums = torch.zeros(3, device=self._ranks.device)
        self._steps, self._waited, self._start = 0, 0.0, time.perf_counter()

    def timed(self, batches: Iterator[TrainBatch]) -> TrainBatch:
        """Draws a batch, and counts the time that it takes."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        return batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time of a `with` block."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def add(self, loss: torch.Tensor, norm: torch.Tensor, replaced: int) -> None:
        """Adds a step, without waiting for the device."""
        self._sums += torch.stack([loss, norm, loss.new_full((), replaced)])
        self._steps += 1

    def line(self, step: int, learning_rate: float) -> dict[str, float]:
        """Returns the line of the journal for the steps since the last one.

        Raises:
            DanqingError: the loss or the gradient is not finite; after such a step the weights are not, either.
        """
        loss, norm, replaced = (self._ranks.mean(self._sums) / self._steps).tolist()
        for name, value in (("loss", loss), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                raise DanqingError(
                    f"step {step}: the {name} is {value}; lower learning_rate, or raise warm_up_steps, in another "
                    "--output"
                )
        seconds = time.perf_counter() - self._start
        rate = self._steps * self._batch / seconds
        self._replaced += replaced * self._steps * self._ranks.count
        line = {
            "step": step,
            "loss": loss,
            "learning_rate": learning_rate,
            "logit_scale": math.exp(self._model.logit_scale.item()),
            "logit_bias": self._model.logit_bias.item(),
            "gradient_norm": norm,
            "pairs_per_second": round(rate, 2),
            "data_wait": round(self._waited / seconds, 4),
            "replaced": round(self._replaced),
        }
        if self._peak:
            line["mfu"] = round(rate * self._flops / self._ranks.count / self._peak, 4)
        self._clear()
        return line
