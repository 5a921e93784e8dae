"""The three phases in a row, as the commands, the demo and the benchmarks run them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from danqing.engine.core.device import open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.spans import Spans
from danqing.engine.decide.funnel import Funnel
from danqing.engine.decide.merging import merge
from danqing.engine.decide.reference import features_recipe, reference_run_folder, with_references
from danqing.engine.decide.walk import decide
from danqing.engine.recipe.reading import Recipe
from danqing.engine.report.html import write_report
from danqing.engine.report.terminal import ProgressBar
from danqing.engine.report.topics import Topics, find_topics
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.score.workers import Watcher, score_on_one, score_on_several
from danqing.engine.sources import find_shards
from danqing.engine.stages.columns import known_columns as known_columns
from danqing.engine.write.writing import WEBDATASET, write
from danqing.trt_models.model_set import ModelSet


def score_inputs(
    inputs: Iterable[str], output: Path, recipe: Recipe, settings: Settings, watcher: Watcher | None = None
) -> tuple[Run, Spans]:
    """SCORE: creates the run, or goes on with it. Returns no spans if there was nothing left to do.

    Args:
        watcher: profiles the scoring (`profiling.watch.watched`); one device at a time.
    """
    if watcher and settings.devices:
        raise DanqingError("--profile looks at one device at a time; leave --devices out")
    shards = find_shards(inputs, settings.layout)
    identity = {
        "models": ModelSet(recipe.models).hashes(),
        **settings.rules(),
        "score_everything": settings.score_everything,
        "max_pixels": settings.max_pixels,
        "resizers": settings.resizers,
    }
    run = Run.create_or_resume(output, shards, recipe, settings.layout, identity)
    waiting = run.unscored()
    if not waiting:
        return run, Spans()
    started = time.monotonic()
    with run.logged(), ProgressBar("score", sum(shard.bytes for shard in waiting)) as progress:
        if settings.devices:
            spans = score_on_several(run, settings, progress)
        else:
            spans = score_on_one(run, settings, progress, watcher=watcher)
    run.note("counts", scored_shards=len(run.shards))
    run.note("times", score_seconds=round(time.monotonic() - started, 3))
    return run, spans


def decide_run(run: Run, recipe: Recipe, device: str = "cpu", threads: int | None = None) -> Funnel:
    """DECIDE, on a device opened for it."""
    with run.logged(), open_device(device, threads) as opened, ProgressBar("decide", 0, "comparisons") as progress:
        return decide(run, recipe, opened, progress)


def merge_runs(
    folders: Sequence[Path], output: Path, device: str = "cpu", threads: int | None = None
) -> tuple[Run, Funnel]:
    """MERGE, on a device opened for it."""
    with open_device(device, threads) as opened, ProgressBar("merge", 0, "comparisons") as progress:
        return merge(folders, output, opened, progress)


def write_run(run: Run, output_format: str = WEBDATASET) -> int:
    """WRITE, with the report, unless these verdicts are written so already; returns the number of kept pairs."""
    run.check_decided()
    wanted = {"recipe_hash": run.manifest["decided"]["recipe_hash"], "output_format": output_format}
    if wanted.items() - run.manifest.get("written", {}).items():
        with run.logged(), ProgressBar("write", sum(shard.bytes for shard in run.shards)) as progress:
            kept = write(run, progress, output_format)
            write_report(run)
        run.note("written", **wanted, kept=kept)
    return int(run.manifest["written"]["kept"])


def topics_of(run: Run, sample: int, smallest: int | None, device: str = "cpu", threads: int | None = None) -> Topics:
    """TOPICS, on a device opened for it, and the report with them."""
    with run.logged(), open_device(device, threads) as opened, ProgressBar("topics", 0, "captions") as progress:
        context = Settings().context(opened, ModelSet(run.recipe.models), ())
        found = find_topics(run, context, progress, sample, smallest)
    write_report(run)
    return found


def curate(
    inputs: Iterable[str],
    output: Path,
    recipe: Recipe,
    settings: Settings,
    output_format: str = WEBDATASET,
    against: Sequence[Path] = (),
    excluded: Sequence[Path] = (),
    exclude_within: float | None = None,
    watcher: Watcher | None = None,
) -> tuple[Run, Funnel, Spans]:
    """SCORE, DECIDE, WRITE; what is finished already is not done again.

    Args:
        against: curated runs; what is near one of their kept rows is dropped.
        excluded: folders of evaluation pictures, or runs of them; what is near one of them is dropped.
        watcher: see `score_inputs`.
    """
    for folder in against:
        Run.open(folder)
    references = {folder: reference_run_folder(folder, output) for folder in excluded}
    pictures = {folder: place for folder, place in references.items() if folder != place}
    for folder in pictures:
        find_shards([str(folder)], settings.layout)  # now, not when everything has been scored
    recipe = with_references(recipe, against, references.values(), exclude_within)
    run, spans = score_inputs(inputs, output, recipe, settings, watcher)
    for folder, place in pictures.items():
        score_inputs([str(folder)], place, features_recipe(recipe), settings)
    funnel = decide_run(run, recipe, settings.device, settings.threads)
    write_run(run, output_format)
    return run, funnel, spans
