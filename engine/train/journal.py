"""What a training tells: train.jsonl, Prometheus, and the services that `--log-to` names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

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


class Tracker(Protocol):
    """A service that draws curves."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the values of a step."""
        ...

    def close(self) -> None:
        """Ends the connection."""
        ...


class _TensorBoard:
    """TensorBoard's files, in OUT/tensorboard."""

    def __init__(self, module: Any, folder: Path, settings: Mapping[str, Any]) -> None:
        self._writer = module.SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Run:
    """A run of wandb, or of trackio, which has the same calls."""

    def __init__(self, module: Any, folder: Path, settings: Mapping[str, Any]) -> None:
        self._module = module
        module.init(project="danqing", name=folder.name, config=dict(settings))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        self._module.finish()


TRACKERS: dict[str, tuple[str, str, type[_TensorBoard] | type[_Run]]] = {
    "tensorboard": ("torch.utils.tensorboard", "tensorboard", _TensorBoard),
    "wandb": ("wandb", "wandb", _Run),
    "trackio": ("trackio", "trackio", _Run),
}
"""Name for `--log-to` → the module, its package, and how it is called."""


def open_tracker(name: str, folder: Path, settings: Mapping[str, Any]) -> Tracker:
    """Opens a tracker.

    Raises:
        DanqingError: there is none of that name, or its package is not installed.
    """
    if name not in TRACKERS:
        raise DanqingError(f"--log-to {name}: {did_you_mean(name, TRACKERS)}")
    module, package, kind = TRACKERS[name]
    try:
        return kind(import_module(module), folder, settings)
    except ImportError as problem:
        raise DanqingError(f"--log-to {name}: {problem}; pip install {package}") from None


class _Gauges(Collector):
    """The last line of the journal, as gauges."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def collect(self) -> Iterator[Metric]:
        for name, value in self.values.items():
            yield GaugeMetricFamily(f"danqing_train_{name}", HELP[name], value)


class Journal:
    """The lines of a training, one every few steps.

    Attributes:
        path: train.jsonl.
    """

    def __init__(self, path: Path, trackers: list[Tracker], gauges: _Gauges) -> None:
        self.path = path
        self._trackers, self._gauges = trackers, gauges

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends a line; `step` is one of its values. Numbers also go to Prometheus and to the trackers."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
        self._gauges.values = self._gauges.values | {name: numbers[name] for name in HELP if name in numbers}
        step = int(numbers.pop("step"))
        for tracker in self._trackers:
            tracker.log(step, numbers)


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
    """
    path, gauges = folder / "train.jsonl", _Gauges()
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        with commit(path, "w") as file:
            file.writelines(f"{line}\n" for line in lines)
    with ExitStack() as stack:
        trackers = []
        for name in log_to:
            tracker = open_tracker(name, folder, settings)
            stack.callback(tracker.close)
            trackers.append(tracker)
        stack.enter_context(serve_collectors([gauges], port, address))
        yield Journal(path, trackers, gauges)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the last line of a killed process
        return float("inf")
