"""Several processes, and processes that are killed: the training is the same as that of one undisturbed process."""

from __future__ import annotations

import json
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from danqing.engine.train.loop import TrainOptions, can_compile, train
from danqing.engine.train.ranks import joined_ranks
from danqing.engine.train.recipe import load_train_recipe
from tests.engine.train import worker
from tests.engine.train.material import journal, planted_pairs, write_checkpoint, write_run

SETTINGS = ["batch=32", "learning_rate=1e-3", "warm_up_steps=2", "steps=16", "checkpoint_steps=5", "log_steps=1"]
TIMEOUT_SECONDS = 240
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.engine.train.worker"])


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def running(target: Callable[..., None], ranks: int, *arguments: object) -> Iterator[list[Any]]:
    """Starts a function in several processes, its last argument the rank; kills them at the end of the block."""
    processes = [PROCESSES.Process(target=target, args=(*arguments, rank)) for rank in range(ranks)]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def test_two_ranks_have_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    with running(worker.compare_with_one, 2, f"file://{tmp_path}/store") as processes:
        for process in processes:
            process.join(TIMEOUT_SECONDS)
            assert process.exitcode == 0


@pytest.mark.parametrize("name, local_rank", [("cuda", None), ("cuda:1", None), ("cuda", "1")])
def test_a_rank_has_the_number_of_its_gpu(name: str, local_rank: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's `set_device` refuses `cuda` without a number."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *given, **named: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    if local_rank:
        for variable, value in (("RANK", "1"), ("LOCAL_RANK", local_rank), ("WORLD_SIZE", "2")):
            monkeypatch.setenv(variable, value)
    with joined_ranks(name) as ranks:
        number = 0 if (name, local_rank) == ("cuda", None) else 1
        assert chosen == [number]
        assert str(ranks.device) == ranks.decoder == f"cuda:{number}"


def test_towers_are_compiled_where_there_is_a_c_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert not can_compile()
    monkeypatch.setenv("CC", "/usr/bin/cc")
    assert can_compile()
    (tmp_path / "Python.h").unlink()
    assert not can_compile()


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
    arguments = ["train", str(folder / "run"), "--from", str(folder / "checkpoint"), "-o", str(folder / name),
                 "--device", "cpu", "--threads", "1", *settings]  # fmt: skip
    lines, deadline = folder / name / "train.jsonl", time.monotonic() + TIMEOUT_SECONDS
    with running(worker.command, ranks, arguments, ranks, free_port()) as processes:
        while not (lines.exists() and lines.read_text(encoding="utf-8").count("\n") >= 8):
            assert time.monotonic() < deadline and all(process.is_alive() for process in processes)
            time.sleep(0.005)
    assert not (folder / name / "model").exists()


def test_a_killed_training_ends_with_the_same_bits(material: Path) -> None:
    train_and_kill(material, "killed", 1)
    finish(material, "killed")
    whole, killed = (material / name / "model" / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    assert [line["step"] for line in journal(material / "killed")] == list(range(1, 17))
    assert sorted(path.name for path in (material / "killed" / "checkpoints").iterdir()) == ["000015", "000016"]


def test_one_process_goes_on_where_two_were_killed(material: Path) -> None:
    train_and_kill(material, "two", 2)
    finish(material, "two")
    losses = [[line["loss"] for line in journal(material / name)] for name in ("whole", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert json.loads((material / "two" / "train.json").read_text())["pairs"] == 160
