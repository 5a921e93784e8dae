"""`danqing demo --train`: trains a small model on the kept pairs and on as many of all pairs, and compares the two."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from danqing.engine.decide.funnel import Funnel
from danqing.engine.demo.crawl import photographs
from danqing.engine.evaluate.results import read_evaluation
from danqing.engine.phases import curate, write_run
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.report.terminal import ProgressBar, console
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.stages.columns import known_columns
from danqing.engine.train import import_training
from danqing.engine.train.recipe import TrainRecipe
from danqing.engine.write.output import WriteOptions

SEEDS = 3
RECIPE = TrainRecipe(
    recipe="demo", batch=32, steps=100, learning_rate=2e-3, warm_up_steps=10, checkpoint_steps=1000, log_steps=20
)
KEPT, RAW = "kept", "raw"
MEAN = "mean_recall"
"""The metric that the verdict is about: the mean of recall at 1, 5 and 10 in both directions."""
READABLE = ("words", "decodable")
"""Criteria that raw pairs meet: without text or picture there is nothing to train on."""


@dataclass(frozen=True)
class Comparison:
    """Results of the models of both kinds of pairs, over all seeds.

    Attributes:
        pairs: number of pairs that each model was trained on.
        metrics: metric → kept or raw → value for each seed.
    """

    pairs: int
    metrics: dict[str, dict[str, list[float]]]

    def differences(self, metric: str) -> np.ndarray:
        """Returns kept minus raw of each seed: float64 (seeds,)."""
        found: np.ndarray = np.subtract(self.metrics[metric][KEPT], self.metrics[metric][RAW])
        return found


def compare_trainings(folder: Path, settings: Settings, recipe: TrainRecipe = RECIPE, seeds: int = SEEDS) -> Comparison:
    """Trains on the kept pairs of FOLDER/run, and on as many that are drawn from all readable pairs of the crawl.

    A seed draws the raw pairs, the first weights of both models and the order of their pairs. All models are evaluated
    by retrieval on the demo's photographs and both captions of each. Two thirds of the photographs are in the crawl
    with their first caption; their second captions are in no training.

    Args:
        folder: of the demo.
        settings: the device and the threads.
        recipe: the training's settings.
        seeds: number of trainings on each kind of pairs.
    """
    loop = import_training()
    import torch

    from danqing.engine.train.random_model import Size, write_random_model

    torch.set_num_threads(1)  # a model this small is no faster with several, which wait for each other
    run = Run.open(folder / "run")
    with_everything = load_recipe("embedded", columns=known_columns())
    criteria = tuple(criterion for criterion in with_everything.criteria if criterion.name in READABLE)
    raw_recipe = replace(with_everything, name=RAW, criteria=criteria)
    shards = [str(path) for path in sorted((folder / "crawl").glob("*.tar"))]
    raw, _, _ = curate(shards, folder / RAW, raw_recipe, settings)
    pairs = Funnel.of(run).kept
    captions = [caption for record in photographs() for caption in record["captions"]]
    size = Size(width=64, heads=4, side=64, patch=16, length=32)  # 0.3 million parameters
    metrics: dict[str, dict[str, list[float]]] = {}
    options = loop.TrainOptions(settings.device, settings.threads, suite="demo")
    for seed in range(seeds):
        write_run(raw, WriteOptions(shuffle=seed))
        start = write_random_model(folder / "models" / str(seed), captions, size, seed)
        for kind, source in ((KEPT, run.folder), (RAW, raw.folder)):
            output = folder / "trained" / f"{kind}-{seed}"
            chosen = replace(recipe, seed=seed, pairs=pairs, batch=min(recipe.batch, pairs))
            loop.train([source], start, output, chosen, options, ProgressBar)
            for name, value in read_evaluation(output / "evaluation.json").rows[0].metrics.items():
                metrics.setdefault(name, {}).setdefault(kind, []).append(value)
    return Comparison(pairs, metrics)


def print_comparison(found: Comparison) -> None:
    """Prints the metrics of both kinds of models, and whether the difference is clear."""
    title = f"trained on {found.pairs} kept pairs, and on {found.pairs} of all readable pairs"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("metric")
    for heading in (KEPT, RAW, "difference", "of each seed"):
        table.add_column(heading, justify="right")
    for metric, values in found.metrics.items():
        differences = found.differences(metric)
        table.add_row(metric, *(f"{np.mean(values[kind]):.3f}" for kind in (KEPT, RAW)), f"{differences.mean():+.3f}",
                      ", ".join(f"{value:+.3f}" for value in differences))  # fmt: skip
    console.print(table)
    console.print(verdict(found.differences(MEAN)))
    console.print("The photographs are those of the crawl: this says what a model learns from as many pairs, not more.")


def verdict(differences: np.ndarray) -> str:
    """Says whether curation helped: only if every seed agrees.

    Args:
        differences: of the mean recall, kept minus raw, for each seed.
    """
    spread = f"mean recall {differences.mean():+.3f}, from {differences.min():+.3f} to {differences.max():+.3f}"
    if differences.min() > 0 or differences.max() < 0:
        return f"curation {'helped' if differences.min() > 0 else 'harmed'} for every seed: {spread}"
    return f"the seeds do not agree that curation helped: {spread}"
