"""Runs in processes that are forked from one which has imported everything, as importing takes seconds of a core."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

import danqing.engine.train.loop  # noqa: F401
from danqing.engine.cli.main import main
from danqing.engine.train.loss import siglip_loss
from danqing.engine.train.model import siglip_model

os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the tests must not wait for the name of this machine to be resolved
siglip_model()


def command(arguments: Sequence[str], ranks: int, port: int, rank: int) -> None:
    """Runs a command line as torchrun does."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in given.items()})
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


def mean(value: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(value)
    return value / 2


def compare_with_one(store: str, rank: int) -> None:
    """Compares the means of the losses and gradients of two ranks, as DDP takes them, with those of one process."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    x, y = torch.randn(16, 10), torch.randn(16, 12)
    alone = Towers()
    whole = siglip_loss(*alone(x, y))
    whole.backward()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    part = slice(8 * rank, 8 * rank + 8)
    for block in (None, 3):
        net = Towers()
        loss = siglip_loss(*net(x[part], y[part]), block=block)
        loss.backward()
        assert abs(mean(loss.detach()) - whole) <= 1e-6 * whole
        for found, expected in zip(net.parameters(), alone.parameters(), strict=True):
            assert found.grad is not None and expected.grad is not None
            assert (mean(found.grad) - expected.grad).abs().max() <= 1e-6
    dist.destroy_process_group()
