"""VERIFY: compares a compiled engine with its model on real pairs: the outputs, and the verdicts that follow from them.

The stages run twice on the same pairs, with the model in float32 and with the engine. Everything else is equal.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import xxhash

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import FEATURES, SHARD_COLUMNS
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.memory import Memory
from danqing.engine.core.quiet import native_stderr_to
from danqing.engine.core.spans import Spans
from danqing.engine.core.text_column import TextColumn
from danqing.engine.decide.columns import TableColumns
from danqing.engine.decide.scores import Scores
from danqing.engine.decide.verdicts import walk
from danqing.engine.recipe.plan import make_plan
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from danqing.engine.score.loop import batches_of, run_stages
from danqing.engine.sources import find_shards, open_shard
from danqing.engine.stages import columns_of_role
from danqing.engine.stages.patterns import stages_for
from danqing.profiling.torch_peer import torch_rate
from danqing.trt_models.card import Card, load_card
from danqing.trt_models.engines import COSINE, DIFFERENCE, Engine, Engines, Parity, runtime_version
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.run.session import Session


def verify(
    card: Card, engine: Engine, inputs: Iterable[str], recipe: Recipe, settings: Settings, pairs: int,
    wanted: dict[str, float], checkpoint: Path | None = None, drop: float | None = None,
) -> Engine:  # fmt: skip
    """Measures an engine's parity and stores it in the engine's JSON.

    Args:
        card: the model.
        engine: the engine, compiled from the model.
        inputs: paths or patterns of shards.
        recipe: gives the verdicts; uses the model.
        settings: the device, threads and limits.
        pairs: the number of pairs to compare, from the start of the inputs.
        wanted: the limits, `cosine_mean` and `flips`, and `drop` if it is given.
        checkpoint: the folder that the model was exported from, to also time it in PyTorch; None: not timed.
        drop: see `Parity`.

    Returns:
        The engine with its parity.

    Raises:
        DanqingError: the recipe does not use the model, the engine is for another device, or no pair reaches the model.
    """
    role, recipe = role_and_recipe(card, recipe)
    batches = first_pairs(inputs, settings, pairs)
    with open_device(settings.device, settings.threads) as device:
        if engine.target != device.target:
            raise DanqingError(f"{engine.name} is for {engine.target}, and this is {device.target}; verify it there")
        model, compiled = (Pass(recipe, role, choice, device, settings, batches) for choice in (None, engine))
        if not model.outputs:
            raise DanqingError(f"no pair of these inputs reached {card.name}; give other inputs, or more --pairs")
        flips = float((model.dropped_by(device) != compiled.dropped_by(device)).mean())
    compare, measure = comparison(card.task)
    expected, found_outputs = aligned(model, compiled)
    found = np.concatenate([compare(expected[name], found_outputs[name]) for name in expected])
    torch = torch_rate(card, checkpoint, model.inputs, device.threads) if checkpoint else None
    parity = Parity(
        sum(map(len, batches)), float(found.min()), float(found.mean()), flips, compiled.rate, model.rate,
        recipe.name, engine.target, str(runtime_version(engine.runtime)), wanted, torch,
        measure, drop,
    )  # fmt: skip
    engine = replace(engine, parity=parity)
    Engines(card).note(engine)
    return engine


def read_samples(
    card: Card, inputs: Iterable[str], recipe: Recipe, settings: Settings, pairs: int
) -> list[dict[str, np.ndarray]]:
    """Returns the model's inputs for the first pairs, batch by batch: name → array. They calibrate int8 engines.

    For the arguments and errors see `verify`.
    """
    role, recipe = role_and_recipe(card, recipe)
    with open_device(settings.device, settings.threads) as device:
        return Pass(recipe, role, None, device, settings, first_pairs(inputs, settings, pairs)).inputs


def role_and_recipe(card: Card, recipe: Recipe) -> tuple[str, Recipe]:
    """Returns the model's role, and the recipe with only the criteria that depend on the model.

    Other criteria could drop a pair first, and so hide that this model's verdict has changed.

    Raises:
        DanqingError: the recipe does not use the model, or has no criterion that depends on it.
    """
    role = next((role for role, name in recipe.models.items() if load_card(name) == card), None)
    if role is None:
        raise DanqingError(
            f"the recipe {recipe.name} does not use {card.name}; give one that does, or --set models.ROLE={card.name}"
        )
    columns = columns_of_role(role)
    touched = tuple(criterion for criterion in recipe.criteria if not columns.isdisjoint(criterion.columns))
    if not touched:
        raise DanqingError(f"the recipe {recipe.name} has no criterion that {card.name} takes part in")
    return role, replace(recipe, criteria=touched)


def first_pairs(inputs: Iterable[str], settings: Settings, pairs: int) -> list[Batch]:
    """Reads the first pairs of the inputs."""
    batches: list[Batch] = []
    missing = pairs
    for shard in find_shards(inputs, settings.layout):
        for batch in batches_of(shard, open_shard(shard, settings.layout), Memory()):
            batches.append(batch.slice(0, missing))
            missing -= len(batches[-1])
            if not missing:
                return batches
    return batches


def comparison(task: str) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], str]:
    """Returns the function that compares the outputs of models for a task row by row, and the name of its measure."""
    if task.endswith("_classifier"):
        return agreement, DIFFERENCE
    return similarity, COSINE if task.endswith("_embedding") else DIFFERENCE


def similarity(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Compares outputs row by row.

    Args:
        expected, found: float (rows, dimension) vectors or (rows,) numbers.

    Returns:
        float64 (rows,): the cosine of vectors, 1 - |difference| of numbers.
    """
    a, b = expected.astype(np.float64), found.astype(np.float64)
    if a.ndim == 1:
        return 1 - np.abs(a - b)
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def agreement(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Compares a classifier's outputs row by row.

    Args:
        expected, found: float (rows,) or (rows, 1) probabilities, or (rows, classes) probabilities or logits.

    Returns:
        float64 (rows,): 1 - the largest |difference| of a probability.
    """
    a, b = (_probabilities(answers.astype(np.float64).reshape(len(answers), -1)) for answers in (expected, found))
    return 1 - np.abs(a - b).max(axis=1)


def _probabilities(answers: np.ndarray) -> np.ndarray:
    if answers.shape[1] == 1 or (answers.min() >= 0 and np.allclose(answers.sum(axis=1), 1, atol=1e-2)):
        return answers
    powers = np.exp(answers - answers.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class Recorded(Protocol):
    """Answers of a model.

    Attributes:
        keys: uint64 (rows,), hash of each row's inputs, in the order of processing.
        outputs: the model's outputs by name, rows in the same order.
    """

    keys: np.ndarray
    outputs: dict[str, np.ndarray]


def aligned(model: Recorded, compiled: Recorded) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the outputs of two passes with the rows in the same order, that of the hashes of their inputs.

    Stages group texts by width within a batch, so a session with another batch size processes them in another order.
    """
    orders = [np.argsort(each.keys, kind="stable") for each in (model, compiled)]
    if not np.array_equal(model.keys[orders[0]], compiled.keys[orders[1]]):
        # A GPU can decode a picture to other pixels in the second pass. Stages do not change the order of pictures.
        return model.outputs, compiled.outputs
    first, second = (
        {name: array[order] for name, array in each.outputs.items()}
        for each, order in zip((model, compiled), orders, strict=True)
    )
    return first, second


class Pass:
    """Runs all stages on the pairs, and records one model.

    Attributes:
        keys: uint64 (rows,), hash of each row's inputs, in the order of processing.
        inputs: the model's inputs, batch by batch.
        outputs: the model's outputs by name, rows in the order of processing.
        rate: rows per second of the model.
    """

    def __init__(
        self, recipe: Recipe, role: str, engine: Engine | None, device: Device, settings: Settings, batches: list[Batch]
    ) -> None:
        self.recipe = recipe
        self.rows: dict[tuple[int, int], dict[str, Any]] = {}
        models = _RecordingModels(recipe, role, engine)
        plan = make_plan(recipe, stages_for(recipe), SHARD_COLUMNS)
        context = settings.context(device, models, plan.wanted)
        with native_stderr_to(Path(os.devnull)):
            copies = (Batch(dict(batch.columns)) for batch in batches)
            run_stages(copies, plan, context, self, Spans(), gated=False, room=0)
        self.inputs = models.inputs
        self.keys = np.array(models.keys, np.uint64)
        self.outputs = {name: np.concatenate(parts) for name, parts in models.outputs.items()}
        self.rate = models.rows / models.seconds if models.seconds else 0.0

    def enter(self, batch: Batch, gated_at: str | None = None) -> None:
        """Takes rows that leave the stages; see `engine.score.loop.RowSink`."""
        names = [name for name in (*self.recipe.columns, FEATURES, "error") if name in batch]
        columns = {
            name: batch[name].to_pylist() if isinstance(batch[name], TextColumn) else batch[name] for name in names
        }
        for position, identity in enumerate(zip(batch["shard"].tolist(), batch["row"].tolist(), strict=True)):
            self.rows[identity] = {name: columns[name][position] for name in names}

    def dropped_by(self, device: Device) -> np.ndarray:
        """Decides every row as DECIDE does: int64 (rows,), the position of the criterion that drops it, or -1."""
        rows = [self.rows[identity] for identity in sorted(self.rows)]
        has_features = np.array([FEATURES in row and row["error"] is None for row in rows], bool)
        features = [row[FEATURES] for row, has in zip(rows, has_features, strict=True) if has]
        columns = {name: _column([row.get(name) for row in rows]) for name in self.recipe.columns}
        columns["gated_at"] = _column([None] * len(rows))
        columns["feature_row"] = _column(np.where(has_features, np.cumsum(has_features) - 1, -1))
        error = np.array([row["error"] is not None for row in rows], bool)
        scores = Scores(error, TableColumns(columns, [np.stack(features)] if features else []))
        return walk(scores, self.recipe, device).dropped_by


def _column(values: Any) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, from_pandas=True)])


class _RecordingModels(ModelSet):
    """The models of a recipe; records inputs, outputs and time of the model in one role."""

    def __init__(self, recipe: Recipe, role: str, engine: Engine | None) -> None:
        super().__init__(recipe.models, {role: engine})
        self.role = role
        self.inputs: list[dict[str, np.ndarray]] = []
        self.outputs: dict[str, list[np.ndarray]] = defaultdict(list)
        self.keys: list[int] = []
        self.rows, self.seconds = 0, 0.0

    def session(self, role: str, device: Device) -> Session:
        session = super().session(role, device)
        return _RecordingSession(session, self, device) if role == self.role else session


class _RecordingSession:
    def __init__(self, session: Session, models: _RecordingModels, device: Device) -> None:
        self.inner, self.models, self.device, self.batch = session, models, device, session.batch

    def run(self, **inputs: Any) -> dict[str, Any]:
        started = time.perf_counter()
        outputs = self.inner.run(**inputs)
        answers = {name: self.device.down(array) for name, array in outputs.items()}
        self.models.seconds += time.perf_counter() - started
        self.models.rows += len(next(iter(answers.values())))
        asked = {name: self.device.down(array) for name, array in inputs.items()}
        self.models.inputs.append(asked)
        for row in zip(*(asked[name] for name in sorted(asked)), strict=True):
            self.models.keys.append(xxhash.xxh3_64_intdigest(b"".join(part.tobytes() for part in row)))
        for name, array in answers.items():
            self.models.outputs[name].append(array)
        return outputs
