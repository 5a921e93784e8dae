"""One function per phase: opens the device, shows progress, writes the run's notes.

The commands, the Python API, the demo and the benchmarks all run these functions.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from danqing.engine.core.damage import Damage, write_damage
from danqing.engine.core.device import open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import OpenProgress
from danqing.engine.core.spans import Spans
from danqing.engine.decide.funnel import Funnel
from danqing.engine.decide.merging import merge
from danqing.engine.decide.reference import features_recipe, reference_run_folder, with_references
from danqing.engine.decide.verdicts import decide
from danqing.engine.recipe.reading import Recipe
from danqing.engine.report.html import write_report
from danqing.engine.report.terminal import ProgressBar
from danqing.engine.report.topics import Topics, find_topics
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.score.ledger import read_report
from danqing.engine.score.workers import Watcher, score_on_one, score_on_several
from danqing.engine.sources import check_parts, find_shards, first_rows
from danqing.engine.write.writing import WEBDATASET, WRITERS, write
from danqing.trt_models.model_set import ModelSet


def score_inputs(
    inputs: Iterable[str],
    output: Path,
    recipe: Recipe,
    settings: Settings,
    watcher: Watcher | None = None,
    progress: OpenProgress = ProgressBar,
) -> tuple[Run, Spans]:
    """SCORE: starts a run, or resumes the one in `output`.

    Args:
        inputs: files, folders, globs and brace ranges.
        output: folder of the run.
        recipe: names the models and the criteria.
        settings: how to score, and on which devices.
        watcher: profiles the scoring (`profiling.watch.profile_scoring`); for one device only.
        progress: opens the listener to the phase.

    Returns:
        The run, and a span for each stage; no spans if all shards had scores.

    Raises:
        DanqingError: an input, a setting or the folder cannot be used; the message says which.
    """
    if watcher and settings.devices:
        raise DanqingError("--profile looks at one device at a time; leave --devices out")
    damage: list[Damage] = []
    shards = first_rows(find_shards(inputs, settings.layout, damage), settings.limit, settings.layout)
    check_parts(shards, settings.layout, captions=recipe.models.keys() != {"image_embedding"})
    identity = {
        "models": ModelSet(recipe.models).hashes(),
        **settings.rules(),
        "score_everything": settings.score_everything,
        "max_pixels": settings.max_pixels,
        "resizers": settings.resizers,
        "limit": settings.limit,
    }
    run = Run.create_or_resume(output, shards, recipe, settings.layout, identity)
    waiting = run.unscored()
    if not waiting:
        _collect_damage(run, damage)
        return run, Spans()
    started = time.monotonic()
    with run.logged(), progress("score", sum(shard.bytes for shard in waiting)) as listener:
        if settings.devices:
            spans = score_on_several(run, settings, listener)
        else:
            spans = score_on_one(run, settings, listener, watcher=watcher)
    run.note("counts", scored_shards=len(run.shards))
    run.note("times", score_seconds=round(time.monotonic() - started, 3))
    _collect_damage(run, damage)
    return run, spans


def _collect_damage(run: Run, damage: list[Damage]) -> None:
    """Writes damaged.json, of what was met while inputs were looked for and while they were read; notes encodings."""
    encodings = Counter[str]()
    for shard in run.shards:
        found, used = read_report(run.scores_path(shard.number))
        damage = damage + found
        encodings.update(used)
    write_damage(run.folder, damage)
    if encodings != run.manifest.get("encodings", {}):
        run.note("encodings", **encodings)


def decide_run(
    run: Run, recipe: Recipe, device: str = "cpu", threads: int | None = None, progress: OpenProgress = ProgressBar
) -> Funnel:
    """DECIDE: opens the device and writes the verdicts and the funnel.

    Args:
        run: a scored run.
        recipe: the criteria to apply.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: host threads; None for all cores.
        progress: opens the listener to the phase.

    Returns:
        What each criterion dropped.

    Raises:
        DanqingError: shards or columns without scores.
    """
    with run.logged(), open_device(device, threads) as opened, progress("decide", 0, "comparisons") as listener:
        return decide(run, recipe, opened, listener)


def merge_runs(
    folders: Sequence[Path],
    output: Path,
    device: str = "cpu",
    threads: int | None = None,
    progress: OpenProgress = ProgressBar,
) -> tuple[Run, Funnel]:
    """MERGE: opens the device and makes one run of several.

    Args:
        folders: decided runs of the same recipe, models and layout.
        output: folder of the merged run.
        device, threads, progress: see `decide_run`.

    Returns:
        The merged run, decided but not written, and its funnel.

    Raises:
        DanqingError: the runs cannot be merged; the message lists the differences.
    """
    with open_device(device, threads) as opened, progress("merge", 0, "comparisons") as listener:
        return merge(folders, output, opened, listener)


def write_run(run: Run, output_format: str = WEBDATASET, progress: OpenProgress = ProgressBar) -> int:
    """WRITE: copies the kept pairs into shards and writes the report; skipped if that is done for these verdicts.

    Args:
        run: a decided run.
        output_format: name of a writer: `webdataset`, `parquet`, or that of an installed package.
        progress: opens the listener to the phase.

    Returns:
        Number of kept pairs.

    Raises:
        DanqingError: no verdicts, or an input that changed since it was scored.
    """
    run.check_decided()
    wanted = {"recipe_hash": run.manifest["decided"]["recipe_hash"], "output_format": output_format}
    if wanted.items() - run.manifest.get("written", {}).items():
        with run.logged(), progress("write", sum(shard.bytes for shard in run.shards)) as listener:
            kept = write(run, listener, output_format)
            write_report(run)
        run.note("written", **wanted, kept=kept)
    return int(run.manifest["written"]["kept"])


def topics_of(
    run: Run,
    sample: int,
    smallest: int | None,
    device: str = "cpu",
    threads: int | None = None,
    progress: OpenProgress = ProgressBar,
) -> Topics:
    """TOPICS: opens the device, finds the topics of the kept captions and writes them and the report.

    Args:
        run: a decided run.
        sample: approximate number of captions.
        smallest: captions that make a topic; None for a thousandth of the sample, at least 10.
        device, threads, progress: see `decide_run`.
    """
    with run.logged(), open_device(device, threads) as opened, progress("topics", 0, "captions") as listener:
        context = Settings().context(opened, ModelSet(run.recipe.models), ())
        found = find_topics(run, context, listener, sample, smallest)
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
    progress: OpenProgress = ProgressBar,
) -> tuple[Run, Funnel, Spans]:
    """SCORE, DECIDE, WRITE; finished work is not repeated.

    Args:
        inputs, output, recipe, settings, watcher, progress: see `score_inputs`.
        output_format: name of a writer: `webdataset`, `parquet`, or that of an installed package.
        against: curated runs; pairs near one of their kept rows are dropped.
        excluded: folders of evaluation images, or runs of them; pairs near one of these images are dropped.
        exclude_within: cosine distance to evaluation images; None for that of the recipe's redundancy criterion.

    Returns:
        The run, what each criterion dropped, and a span for each stage (see `score_inputs`).

    Raises:
        DanqingError: an input, a setting or a folder cannot be used; the message says which.
    """
    WRITERS.named(output_format)  # an unknown format is an error now, not after scoring
    for folder in against:
        Run.open(folder)
    references = {folder: reference_run_folder(folder, output) for folder in excluded}
    pictures = {folder: place for folder, place in references.items() if folder != place}
    for folder in pictures:
        find_shards([str(folder)], settings.layout)  # a wrong folder is reported before the scoring, not after it
    recipe = with_references(recipe, against, references.values(), exclude_within)
    run, spans = score_inputs(inputs, output, recipe, settings, watcher, progress)
    for folder, place in pictures.items():
        score_inputs([str(folder)], place, features_recipe(recipe), replace(settings, limit=None), progress=progress)
    funnel = decide_run(run, recipe, settings.device, settings.threads, progress)
    write_run(run, output_format, progress)
    return run, funnel, spans
