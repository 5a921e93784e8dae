"""The training recipe: a flat YAML file of numbers, checked when it is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.storage import path_of
from danqing.engine.core.user_yaml import LimitedLoader, describe_yaml_error, read_user_file

RECIPES = resources.files("danqing.engine.train") / "recipes"
DEFAULT = "danqing"


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

    batch: int
    learning_rate: float
    recipe: str = ""
    description: str = ""
    epochs: int = 1
    steps: int | None = None
    pairs: int | None = None
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    warm_up_steps: int = 0
    max_gradient_norm: float = 1.0
    max_logit_scale: float = 100.0
    recaption_share: float = 0.0
    seed: int = 0
    window_shards: int = 16
    checkpoint_steps: int = 500
    keep_every_steps: int | None = None
    log_steps: int = 10

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


POSITIVE = ("batch", "epochs", "steps", "pairs", "window_shards", "checkpoint_steps", "keep_every_steps",
            "log_steps")  # fmt: skip
AT_LEAST = dict.fromkeys(POSITIVE, 1) | dict.fromkeys(
    ("learning_rate", "weight_decay", "warm_up_steps", "max_gradient_norm", "recaption_share", "seed"), 0
)
AT_MOST = {"recaption_share": 1, "seed": 2**63 - 1}


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
    values = {str(name): _checked(str(name), value, where) for name, value in content.items()}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise DanqingError(f"--set {setting}: write it as NAME=VALUE, for example batch=1536")
        values[name.strip()] = _checked(name.strip(), _parsed(value, f"--set {setting}"), f"--set {setting}")
    missing = [f.name for f in fields(TrainRecipe) if f.default is MISSING and f.name not in values]
    if missing:
        raise DanqingError(f"{where}: the key {missing[0]!r} is missing")
    return TrainRecipe(**values)


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, LimitedLoader)
    except (yaml.YAMLError, ValueError) as problem:  # ValueError: a date that does not exist
        raise DanqingError(describe_yaml_error(where, problem)) from None


def _checked(name: str, value: Any, where: str) -> Any:
    """Returns a value in the type of its field."""
    kinds = {field.name: str(field.type) for field in fields(TrainRecipe)}
    if name not in kinds:
        raise DanqingError(f"{where}: unknown key {name!r}; {did_you_mean(name, kinds)}")
    kind = kinds[name]
    if value is None and kind.endswith("None"):
        return None
    if kind.startswith("tuple"):
        if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(0 <= _number(v) < 1 for v in value):
            raise DanqingError(f"{where}: {name} must be two numbers from 0 to below 1, not {value!r}")
        return float(value[0]), float(value[1])
    if kind == "str":
        return str(value)
    number = _number(value)
    if kind.startswith("int") and number == int(number if math.isfinite(number) else 0.5):
        number = int(number)
    least, most = AT_LEAST.get(name, 0), AT_MOST.get(name, math.inf)
    if not (least <= number <= most) or (kind.startswith("int") and not isinstance(number, int)):
        what = "a whole number" if kind.startswith("int") else "a number"
        bounds = f"from {least} to {most}" if math.isfinite(most) else f"of {least} or more"
        raise DanqingError(f"{where}: {name} must be {what} {bounds}, not {value!r}")
    return number


def _number(value: Any) -> float | int:
    """Returns a YAML value as a number; `nan` for other values. YAML 1.1 reads 1e-5 as text."""
    try:
        return math.nan if isinstance(value, bool) else value if isinstance(value, int) else float(value)
    except (TypeError, ValueError):
        return math.nan
