"""The processes of a training, which torchrun starts: one a GPU, or several on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from danqing.engine.core.device import resolve_device
from danqing.engine.core.errors import DanqingError

PATIENCE = timedelta(hours=3)
"""Time that a rank waits for the others: the first evaluates the model while they wait."""


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        rank: its number, from 0.
        count: number of processes.
        device: where it trains.
        decoder: name of the engine's device that decodes its pictures.
    """

    rank: int
    count: int
    device: torch.device
    decoder: str

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def part(self, batch: int) -> tuple[int, int]:
        """Returns the first and the last (exclusive) row of this rank in a global batch.

        Raises:
            DanqingError: the ranks do not divide the batch.
        """
        if batch % self.count:
            raise DanqingError(
                f"a batch of {batch:,} pairs cannot be divided among {self.count} processes; --set batch="
                f"{batch // self.count * self.count or self.count}"
            )
        size = batch // self.count
        return self.rank * size, (self.rank + 1) * size

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the mean of values over the ranks."""
        if self.count > 1:
            dist.all_reduce(values)
        return values / self.count

    def wait(self) -> None:
        """Waits until all ranks are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined_ranks(device: str, decode: str = "auto") -> Iterator[Ranks]:
    """Joins the processes that torchrun has started, during a `with` block; alone, there is one.

    Args:
        device: `cpu`, `cuda`, `cuda:N` or `auto`; several processes of a machine use its GPUs in turn.
        decode: `cpu`: decode pictures on the host; `auto`: on the device.

    Raises:
        DanqingError: there is no such device.
    """
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    name = resolve_device(device)
    if name != "cpu":
        if not torch.cuda.is_available():
            raise DanqingError(f"--device {name}: this PyTorch finds no GPU; see nvidia-smi, or --device cpu")
        if count > 1:
            name = f"cuda:{os.environ.get('LOCAL_RANK', rank)}"
        elif name == "cuda":
            name = "cuda:0"  # `set_device` refuses a device without a number
        torch.cuda.set_device(torch.device(name))
    ranks = Ranks(rank, count, torch.device(name), "cpu" if decode == "cpu" else name)
    if count == 1:
        yield ranks
        return
    dist.init_process_group("gloo" if name == "cpu" else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
