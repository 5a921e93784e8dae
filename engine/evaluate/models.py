"""Evaluates several models, or a model and its engine, on the same suites."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from danqing.engine.core.device import open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import OpenProgress, silent
from danqing.engine.evaluate.evaluation import evaluate
from danqing.engine.evaluate.formats import read_templates
from danqing.engine.evaluate.results import Evaluation
from danqing.engine.evaluate.suites import open_suite
from danqing.engine.evaluate.towers import IMAGE, PLAIN, TEXT, EngineTowers, check_model, open_towers
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from danqing.trt_models.engines import Engine
from danqing.trt_models.model_set import ModelSet


def evaluate_models(
    models: Sequence[str],
    suites: Sequence[str],
    settings: Settings,
    templates: Path | None = None,
    limit: int | None = None,
    progress: OpenProgress = silent,
) -> list[Evaluation]:
    """Measures models on suites, one after the other.

    Args:
        models: see `towers.find_model`.
        suites: see `suites.open_suite`.
        settings: the device, threads, resizer and limits.
        templates: file of templates, see `formats.read_templates`; None for those of the data sets and the engine's.
        limit: only the first pictures of each data set; None for all.
        progress: shows the pictures that are embedded, and which folders of a suite are no data sets.

    Returns:
        An evaluation for each model.

    Raises:
        DanqingError: a model, a suite or the templates cannot be used; a model is given twice.
    """
    if len(set(models)) < len(models):
        raise DanqingError("a model is given twice; name another, or another engine of it: MODEL@ENGINE")
    for model in models:
        check_model(model)  # a wrong or missing model is an error now, not after the first model's hours
    chosen = read_templates(templates) if templates else ()
    suite, found = open_suite(*suites), []
    for model in models:
        with open_towers(model, settings) as towers:
            found.append(evaluate(towers, suite, chosen, limit, progress))
    return found


def compare_engine(
    role: str,
    recipe: Recipe,
    engine: Engine,
    suites: Sequence[str],
    settings: Settings,
    progress: OpenProgress = silent,
) -> tuple[Evaluation, Evaluation]:
    """Measures a model, and the same with one tower's engine, on suites.

    Args:
        role: the engine's tower.
        recipe: names both towers.
        engine: the engine.
        suites, settings, progress: see `evaluate_models`.

    Returns:
        The model's evaluation and the engine's.

    Raises:
        DanqingError: the engine's model is no tower, or the recipe lacks the other one.
    """
    if role not in (IMAGE, TEXT):
        raise DanqingError(f"--suite measures embeddings, and {engine.card} is for {role}; leave --suite out")
    if missing := [tower for tower in (IMAGE, TEXT) if tower not in recipe.models]:
        raise DanqingError(f"--suite needs both towers; name the other with --set models.{missing[0]}=NAME")
    suite, cards = open_suite(*suites), {tower: recipe.models[tower] for tower in (IMAGE, TEXT)}
    plain: dict[str, Engine | None] = dict.fromkeys(cards)
    with open_device(settings.device, settings.threads) as device:
        model, compiled = (
            evaluate(EngineTowers(name, ModelSet(cards, engines), device, settings), suite, progress=progress)
            for name, engines in ((PLAIN, plain), (engine.name, plain | {role: engine}))
        )
    return model, compiled
