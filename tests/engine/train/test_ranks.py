"""Several processes, and processes that are killed: the training is the same as that of one undisturbed process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from danqing.engine.train.loop import TrainOptions, train
from danqing.engine.train.recipe import load_train_recipe
from tests.conftest import started
from tests.engine.train.material import journal, planted_pairs, write_checkpoint, write_run

SETTINGS = ["batch=32", "learning_rate=1e-3", "warm_up_steps=2", "steps=16", "checkpoint_steps=5", "log_steps=1"]
TIMEOUT_SECONDS = 240
TWO_RANKS = """
import sys, torch, torch.distributed as dist
from torch.nn.functional import normalize
from danqing.engine.train.loss import siglip_loss
torch.set_num_threads(1)
class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(10, 8), torch.nn.Linear(12, 8)
        self.scale, self.bias = torch.nn.Parameter(torch.tensor(2.3)), torch.nn.Parameter(torch.tensor(-10.0))
    def forward(self, x, y):
        return normalize(self.image(x), dim=1), normalize(self.text(y), dim=1), self.scale.exp(), self.bias
torch.manual_seed(1)
x, y = torch.randn(16, 10), torch.randn(16, 12)
alone = Towers()
whole = siglip_loss(*alone(x, y))
whole.backward()
dist.init_process_group("gloo")
part = slice(8 * dist.get_rank(), 8 * dist.get_rank() + 8)
net = torch.nn.parallel.DistributedDataParallel(Towers())
loss = siglip_loss(*net(x[part], y[part]), block=int(sys.argv[1]))
loss.backward()
total = loss.detach().clone()
dist.all_reduce(total)
error = max((a.grad - b.grad).abs().max().item() for a, b in zip(net.parameters(), alone.parameters()))
print(abs(total.item() / 2 - whole.item()), error, whole.item())
dist.destroy_process_group()
"""


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return os.environ | {name: str(value) for name, value in given.items()} | {"MASTER_ADDR": "127.0.0.1"}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_two_ranks_have_the_loss_and_the_gradients_of_one() -> None:
    for block in ("8", "3"):
        port = free_port()
        command = [sys.executable, "-c", TWO_RANKS, block]
        with ExitStack() as stack:
            processes = [
                stack.enter_context(started(command, env=environment(rank, 2, port), stdout=subprocess.PIPE, text=True))
                for rank in range(2)
            ]
            for process in processes:
                printed, _ = process.communicate(timeout=TIMEOUT_SECONDS)
                difference, error, loss = map(float, printed.split())
                assert difference <= 1e-6 * loss and error <= 1e-6


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a checkpoint, and the training of one process that nothing disturbs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ranks")
    write_run(folder / "run", planted_pairs(160))
    write_checkpoint(folder / "checkpoint", [text for _, text in planted_pairs(160)])
    finish(folder, "whole")
    return folder


def finish(folder: Path, name: str) -> None:
    """Trains in this process, from where a training stands."""
    recipe = load_train_recipe("danqing", SETTINGS)
    train([folder / "run"], folder / "checkpoint", folder / name, recipe, TrainOptions("cpu", 1))


def train_and_kill(folder: Path, name: str, ranks: int) -> None:
    """Trains by the command in several processes, and kills them after the eighth step."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "danqing.engine.cli.main", "train", str(folder / "run"), "--from",
               str(folder / "checkpoint"), "-o", str(folder / name), "--device", "cpu", "--threads", "1",
               *settings]  # fmt: skip
    port, lines = free_port(), folder / name / "train.jsonl"
    with ExitStack() as stack:
        processes = [stack.enter_context(started(command, env=environment(rank, ranks, port))) for rank in range(ranks)]
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not (lines.exists() and lines.read_text(encoding="utf-8").count("\n") >= 8):
            assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
            time.sleep(0.005)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
    assert not (folder / name / "model").exists()


def test_a_killed_training_ends_with_the_same_bits(material: Path) -> None:
    train_and_kill(material, "killed", 1)
    finish(material, "killed")
    whole, killed = (material / name / "model" / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    assert [line["step"] for line in journal(material / "killed")] == list(range(1, 17))
    assert sorted(path.name for path in (material / "killed" / "checkpoints").iterdir()) == ["000010", "000015"]


def test_one_process_goes_on_where_two_were_killed(material: Path) -> None:
    train_and_kill(material, "two", 2)
    finish(material, "two")
    losses = [[line["loss"] for line in journal(material / name)] for name in ("whole", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert json.loads((material / "two" / "train.json").read_text())["pairs"] == 160
