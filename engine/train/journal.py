"""What a training tells: train.jsonl, Prometheus, and the services that `--log-to` names."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.files import commit
from danqing.engine.score.metrics import serve_collectors

HELP = {
    "step": "Steps that are done.",
    "loss": "Mean loss of a pair.",
    "learning_rate": "Of the last step.",
    "logit_scale": "The factor of the logits.",
    "logit_bias": "The offset of the logits.",
    "gradient_norm": "Before clipping.",
    "pairs_per_second": "Over all ranks.",
    "mfu": "Share of the GPUs' arithmetic that the model uses.",
    "data_wait": "Share of the time in which the training waits for pairs.",
    "replaced": "Pairs with a broken picture since the start of the process.",
}
"""Field of a line of train.jsonl → what its gauge, danqing_train_FIELD, means."""


Log = Callable[[int, Mapping[str, float]], None]
"""Sends the values of a step to a service that draws curves."""


@contextmanager
def _tensorboard(module: Any, folder: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    """Writes TensorBoard's files to OUT/tensorboard."""
    writer = module.SummaryWriter(str(folder / "tensorboard"))

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    with closing(writer):
        yield log


@contextmanager
def _service(module: Any, folder: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    """Opens a run of wandb, or of trackio, which has the same calls."""
    module.init(project="danqing", name=folder.name, config=dict(settings))
    try:
        yield lambda step, values: module.log(dict(values), step=step)
    finally:
        module.finish()


TRACKERS = {
    "tensorboard": ("torch.utils.tensorboard", _tensorboard),
    "wandb": ("wandb", _service),
    "trackio": ("trackio", _service),
}
"""Name for `--log-to`, which is that of the package → the module, and how it is called."""


def _open_tracker(name: str, folder: Path, settings: Mapping[str, Any]) -> AbstractContextManager[Log]:
    if name not in TRACKERS:
        raise DanqingError(f"--log-to {name}: {did_you_mean(name, TRACKERS)}")
    module, opened = TRACKERS[name]
    try:
        return opened(import_module(module), folder, settings)
    except ImportError as problem:
        raise DanqingError(f"--log-to {name}: {problem}; pip install {name}") from None


class Journal(Collector):
    """The lines of a training, one every few steps; the last values are gauges for Prometheus.

    Attributes:
        path: train.jsonl.
    """

    def __init__(self, path: Path, trackers: list[Log]) -> None:
        self.path, self._trackers = path, trackers
        self._shown: dict[str, float] = {}

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends a line; `step` is one of its values. Numbers also go to Prometheus and to the trackers."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
        self._shown = self._shown | {name: numbers[name] for name in HELP if name in numbers}
        step = int(numbers.pop("step"))
        for log in self._trackers:
            log(step, numbers)

    def collect(self) -> Iterator[Metric]:
        for name, value in self._shown.items():
            yield GaugeMetricFamily(f"danqing_train_{name}", HELP[name], value)


@contextmanager
def open_journal(
    folder: Path, step: int, settings: Mapping[str, Any], log_to: tuple[str, ...], port: int | None, address: str
) -> Iterator[Journal]:
    """Opens the journal of a training during a `with` block.

    Args:
        folder: OUT; lines of later steps than `step`, which will be done again, are removed from its train.jsonl.
        step: of the checkpoint that the training goes on from.
        settings: the recipe, for the trackers.
        log_to: names of trackers.
        port, address: where Prometheus metrics are served; no port: nowhere.

    Raises:
        DanqingError: there is no such tracker, or its package is not installed.
    """
    path = folder / "train.jsonl"
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        with commit(path, "w") as file:
            file.writelines(f"{line}\n" for line in lines)
    with ExitStack() as stack:
        journal = Journal(path, [stack.enter_context(_open_tracker(name, folder, settings)) for name in log_to])
        stack.enter_context(serve_collectors([journal], port, address))
        yield journal


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads a train.jsonl, without what a killed process has left of a line; empty if there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if math.isfinite(_step_of(line))]


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the last line of a killed process
        return float("inf")
