"""The training recipe: a flat YAML file of numbers, checked when it is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.storage import path_of
from danqing.engine.core.user_yaml import LimitedLoader, describe_yaml_error, read_user_file

RECIPES = resources.files("danqing.engine.train") / "recipes"
DEFAULT = "danqing"


def bounded(minimum: float = 0, maximum: float = math.inf, default: Any = MISSING) -> Any:
    """Declares a number of the recipe with its smallest and its largest value."""
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum})


@dataclass(frozen=True)
class TrainRecipe:
    """How a model is trained; recipes/danqing.yaml explains the values.

    Attributes:
        recipe: its name.
        description: one sentence.
        epochs: passes over the pairs; ignored if `steps` is given.
        steps: number of optimizer steps; None: those of the epochs.
        pairs: number of pairs to use, from the start of the runs; None: all.
        batch: pairs of a step, over all ranks.
        learning_rate: after the warm-up.
        weight_decay: AdamW's, for parameters of two dimensions or more.
        betas: AdamW's.
        warm_up_steps: steps of the linear warm-up.
        max_gradient_norm: gradients are scaled down to this norm.
        max_logit_scale: upper bound of exp(logit_scale).
        recaption_share: share of the pairs whose text is the recaption, 0 to 1.
        seed: of the order of the pairs.
        window_shards: shards whose rows are mixed.
        checkpoint_steps: steps between two checkpoints.
        keep_every_steps: checkpoints at multiples of this are never removed; None: only the last two are kept.
        log_steps: steps that a line of train.jsonl sums up.
    """

    batch: int = bounded(1)
    learning_rate: float = bounded()
    recipe: str = ""
    description: str = ""
    epochs: int = bounded(1, default=1)
    steps: int | None = bounded(1, default=None)
    pairs: int | None = bounded(1, default=None)
    weight_decay: float = bounded(default=0.1)
    betas: tuple[float, float] = (0.9, 0.98)
    warm_up_steps: int = bounded(default=0)
    max_gradient_norm: float = bounded(default=1.0)
    max_logit_scale: float = bounded(1, default=100.0)
    recaption_share: float = bounded(0, 1, default=0.0)
    seed: int = bounded(0, 2**63 - 1, default=0)
    window_shards: int = bounded(1, default=16)
    checkpoint_steps: int = bounded(1, default=500)
    keep_every_steps: int | None = bounded(1, default=None)
    log_steps: int = bounded(1, default=10)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Returns the learning rate of a step: a linear warm-up, then half a cosine to 0.

        Args:
            step: from 0.
            steps: number of steps.
        """
        if step < self.warm_up_steps:
            return self.learning_rate * (step + 1) / self.warm_up_steps
        done = (step - self.warm_up_steps) / max(1, steps - self.warm_up_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """The differences of another recipe, as `to_dict` gives it, from this one; one sentence each."""
        mine = self.to_dict()
        names = dict.fromkeys([*mine, *other])
        return [
            f"{name}: {other.get(name)} there, {mine.get(name)} here"
            for name in names
            if name != "description" and mine.get(name) != other.get(name)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The values by name, as JSON has them."""
        return asdict(self) | {"betas": list(self.betas)}


def builtin_names() -> list[str]:
    """The names of the recipes that come with the engine."""
    return sorted(path.name[:-5] for path in RECIPES.iterdir() if path.name.endswith(".yaml"))


def load_train_recipe(name_or_path: str | Path = DEFAULT, settings: Iterable[str] = ()) -> TrainRecipe:
    """Reads a built-in recipe by name or a YAML file by path, and applies `settings`.

    Args:
        name_or_path: a name of `builtin_names` or a file.
        settings: `batch=1536`: key, equals, YAML value.

    Raises:
        DanqingError: the recipe cannot be read or used; names the file or the setting, and the nearest valid name.

    >>> load_train_recipe("danqing", ["batch=1536"]).batch
    1536
    """
    path = path_of(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        text, where = read_user_file(path, "recipe"), str(path)
    elif str(name_or_path) in builtin_names():
        text, where = (RECIPES / f"{name_or_path}.yaml").read_text(encoding="utf-8"), f"{name_or_path}.yaml"
    else:
        known = did_you_mean(str(name_or_path), builtin_names())
        raise DanqingError(f"no training recipe {str(name_or_path)!r}: {known}; or give the path of a .yaml file")
    content = _parsed(text, where)
    if not isinstance(content, dict):
        raise DanqingError(f"{where}: a training recipe is a mapping of names to numbers")
    given = [(str(name), value, where) for name, value in content.items()]
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise DanqingError(f"--set {setting}: write it as NAME=VALUE, for example batch=1536")
        given.append((name.strip(), _parsed(value, f"--set {setting}"), f"--set {setting}"))
    values = {name: _checked(name, value, place) for name, value, place in given}
    if missing := [f.name for f in fields(TrainRecipe) if f.default is MISSING and f.name not in values]:
        raise DanqingError(f"{where}: the key {missing[0]!r} is missing")
    return TrainRecipe(**values)


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, LimitedLoader)
    except (yaml.YAMLError, ValueError) as problem:  # ValueError: a date that does not exist
        raise DanqingError(describe_yaml_error(where, problem)) from None


def _checked(name: str, value: Any, where: str) -> Any:
    """Returns a value in the type of its field."""
    known = {field.name: field for field in fields(TrainRecipe)}
    if name not in known:
        raise DanqingError(f"{where}: unknown key {name!r}; {did_you_mean(name, known)}")
    kind = str(known[name].type)
    if kind == "str":
        return str(value)
    if value is None and kind.endswith("None"):
        return None
    if kind.startswith("tuple"):
        if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(0 <= _number(v) < 1 for v in value):
            raise DanqingError(f"{where}: {name} must be two numbers from 0 to below 1, not {value!r}")
        return float(value[0]), float(value[1])
    number, whole = _number(value), kind.startswith("int")
    if whole and isinstance(number, float) and number.is_integer():
        number = int(number)
    minimum, maximum = known[name].metadata["minimum"], known[name].metadata["maximum"]
    if not (minimum <= number <= maximum and math.isfinite(number)) or (whole and not isinstance(number, int)):
        bounds = f"from {minimum} to {maximum}" if math.isfinite(maximum) else f"of {minimum} or more"
        raise DanqingError(f"{where}: {name} must be {'a whole' if whole else 'a'} number {bounds}, not {value!r}")
    return number


def _number(value: Any) -> float | int:
    """Returns a YAML value as a number; `nan` for other values. YAML 1.1 reads 1e-5 as text."""
    try:
        return math.nan if isinstance(value, bool) else value if isinstance(value, int) else float(value)
    except (TypeError, ValueError):
        return math.nan
