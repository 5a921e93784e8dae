"""Runs in processes that are forked from one which has imported everything, as importing takes seconds of a core."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

import danqing.engine.train.loop  # noqa: F401
from danqing.engine.cli.main import main
from danqing.engine.train.loss import siglip_loss
from danqing.engine.train.model import siglip_model

siglip_model()


def command(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Runs a command line."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    os._exit(main(arguments))


class Towers(torch.nn.Module):
    """Two linear layers in place of networks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(10, 8), torch.nn.Linear(12, 8)
        self.scale, self.bias = torch.nn.Parameter(torch.tensor(2.3)), torch.nn.Parameter(torch.tensor(-10.0))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return normalize(self.image(x), dim=1), normalize(self.text(y), dim=1), self.scale.exp(), self.bias


def compare_with_one(environment: Mapping[str, str]) -> None:
    """Compares the loss and the gradients of this rank and another one with those of one process."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    x, y = torch.randn(16, 10), torch.randn(16, 12)
    alone = Towers()
    whole = siglip_loss(*alone(x, y))
    whole.backward()
    dist.init_process_group("gloo")
    part = slice(8 * dist.get_rank(), 8 * dist.get_rank() + 8)
    for block in (None, 3):
        net = torch.nn.parallel.DistributedDataParallel(Towers())
        loss = siglip_loss(*net(x[part], y[part]), block=block)
        loss.backward()
        total = loss.detach().clone()
        dist.all_reduce(total)
        assert abs(total / 2 - whole) <= 1e-6 * whole
        for found, expected in zip(net.parameters(), alone.parameters(), strict=True):
            assert found.grad is not None and expected.grad is not None
            assert (found.grad - expected.grad).abs().max() <= 1e-6
    dist.destroy_process_group()
