"""One function per phase: opens the device, shows progress, writes the run's notes.

The commands, the Python API, the demo and the benchmarks all run these functions.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from danqing.engine.core.damage import Damage, read_damage, write_damage
from danqing.engine.core.device import kind_of, open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import OpenProgress, Progress
from danqing.engine.core.quiet import native_stderr_to
from danqing.engine.core.spans import Spans
from danqing.engine.core.storage import remove_tree
from danqing.engine.decide.cluster import NeighbourCluster, RaySearch
from danqing.engine.decide.contents import check_current
from danqing.engine.decide.dedup.index import AUTO, choose_index
from danqing.engine.decide.funnel import Funnel
from danqing.engine.decide.merging import merge
from danqing.engine.decide.reference import features_recipe, reference_run_folder, with_references
from danqing.engine.decide.tasks import TaskList, latest_list, list_again, run_task
from danqing.engine.decide.verdicts import decide, list_tasks
from danqing.engine.recaption.metrics import AskingMetrics
from danqing.engine.recaption.prompts import Prompt
from danqing.engine.recaption.recaptioning import Asking, note_verdicts, recaption
from danqing.engine.recipe.reading import Recipe
from danqing.engine.report.calibration import Calibrations, calibrate
from danqing.engine.report.html import write_report
from danqing.engine.report.terminal import ProgressBar
from danqing.engine.report.topics import Topics, find_topics
from danqing.engine.run.claims import AnyPart, Claims, forget_claims
from danqing.engine.run.cluster import connected
from danqing.engine.run.folder import MERGED, Run
from danqing.engine.run.lock import lock_manifest, lock_output
from danqing.engine.run.part import Share, TaskPart
from danqing.engine.run.settings import Settings
from danqing.engine.run.tables import SCORE_AGAIN, reading
from danqing.engine.score.cluster import score_on_cluster
from danqing.engine.score.ledger import read_report
from danqing.engine.score.metrics import serve_metrics
from danqing.engine.score.settling import settle
from danqing.engine.score.workers import Watcher, score_on_one, score_on_several
from danqing.engine.sources import Shard, check_parts, find_shards, first_rows
from danqing.engine.stages.vlm.chat import Question
from danqing.engine.stages.vlm.judgment import FOLDER as ANSWERS
from danqing.engine.stages.vlm.judgment import no_endpoint
from danqing.engine.write.cluster import copy_on_cluster
from danqing.engine.write.output import WriteOptions, decision_digest, max_pixels, read_verdicts
from danqing.engine.write.products import STALE, is_stamped, move_stale
from danqing.engine.write.writing import WRITERS, write
from danqing.trt_models.model_set import ModelSet


@lock_output
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
    if watcher and (settings.devices or settings.ray):
        raise DanqingError("--profile looks at one device at a time; leave --devices and --ray out")
    part = settings.part
    damage: list[Damage] = []
    settings = _with_model(settings, recipe, output)
    shards = first_rows(find_shards(inputs, settings.layout, damage), settings.limit, settings.layout)
    check_parts(shards, settings.layout, captions=recipe.models.keys() != {"image_embedding"})
    with connected(settings.ray):
        run = _start(output, shards, recipe, settings)
        waiting, spans = run.unscored(part), Spans()
        started = time.monotonic()
        with run.logged(part):
            if waiting:
                with progress("score", sum(shard.bytes for shard in waiting)) as listener:
                    spans = _score(run, settings, listener, waiting, watcher)
            refused = run.manifest.get("refused_engines", {})
            with run.locked_manifest(part):
                if part and refused:
                    run.note("refused_engines", **refused)
                if not run.unscored() and not (part and run.manifest["counts"]):  # else another part has finished it
                    _finish_scoring(run, damage)
                    if waiting and not part:
                        run.note("times", score_seconds=round(time.monotonic() - started, 3))
                        run.note("machine", device=", ".join(settings.devices) or kind_of(settings.device))
    return run, spans


def _with_model(settings: Settings, recipe: Recipe, output: Path) -> Settings:
    """The settings with the id of the model that the recipe's criteria ask, and the folder of its answers."""
    if not recipe.judgments:
        return replace(settings, vlm=None)
    if settings.vlm is None:
        raise DanqingError(no_endpoint(recipe.judgments[0]))
    return replace(settings, vlm=replace(settings.vlm, model=settings.vlm.open().model, answers=output / ANSWERS))


def _start(output: Path, shards: list[Shard], recipe: Recipe, settings: Settings) -> Run:
    """Starts a run, or opens the one in `output` to resume it."""
    identity = {
        "models": ModelSet(recipe.models).hashes(),
        **settings.rules(),
        "score_everything": settings.score_everything,
        "max_pixels": settings.max_pixels,
        "resizers": settings.resizers,
        "limit": settings.limit,
    }
    if settings.vlm:
        identity["vlm"] = settings.vlm.model
    with lock_manifest(output) if settings.part else nullcontext():
        if settings.part:
            forget_claims(output)
        run = Run.create_or_resume(output, shards, recipe, settings.layout, identity, settings.force, settings.part)
        if run.manifest["counts"] and run.unscored():  # scores were removed, so the run is not settled any more
            run.manifest["counts"] = {}
            run.save()
    return run


def _score(run: Run, settings: Settings, listener: Progress, shards: Sequence[Shard], watcher: Watcher | None) -> Spans:
    if settings.ray:
        return score_on_cluster(run, settings, listener, shards)
    if isinstance(settings.part, AnyPart):
        claims = Claims(run.folder, "scores", settings.part, run.unscored, run.is_scored, listener.say)
        spans = Spans()
        with closing(claims.rounds()) as rounds:
            for claimed in rounds:
                spans.add(_score_here(run, settings, listener, claimed, watcher))
        return spans
    return _score_here(run, settings, listener, iter(shards), watcher)


def _score_here(
    run: Run, settings: Settings, listener: Progress, shards: Iterator[Shard], watcher: Watcher | None
) -> Spans:
    if settings.devices:
        return score_on_several(run, settings, listener, shards)
    return score_on_one(run, settings, listener, shards, watcher)


def _finish_scoring(run: Run, damage: Sequence[Damage]) -> None:
    """Settles a run whose shards all have scores, unless it is settled, and collects what SCORE found in the inputs."""
    settled = bool(run.manifest["counts"])
    if not settled:
        settle(run)
        if "vlm" in run.manifest:
            remove_tree(run.folder / ANSWERS)  # they are in the scores
    _collect_damage(run, damage)
    if not settled:
        run.note("counts", scored_shards=len(run.shards))


def damage_of_part(run: Run, part: Share) -> list[Damage]:
    """Returns the damage found in the shards of a part that have scores."""
    paths = [run.scores_path(shard.number) for shard in run.shards if part.holds(shard.number)]
    return [entry for path in paths if path.exists() for entry in read_report(path)[0]]


def _collect_damage(run: Run, damage: Sequence[Damage]) -> None:
    """Writes damaged.json, with the damage of the search for inputs and of all shards; notes encodings in run.json."""
    found, encodings = list(damage), Counter[str]()
    for shard in run.shards:
        with reading(run.scores_path(shard.number), SCORE_AGAIN):
            damage_of_shard, encodings_of_shard = read_report(run.scores_path(shard.number))
        found += damage_of_shard
        encodings.update(encodings_of_shard)
    write_damage(run.folder, found)
    if encodings != run.manifest.get("encodings", {}):
        run.manifest["encodings"] = dict(encodings)
        run.save()


def _driver_device(device: str, ray: RaySearch | str | None) -> str:
    """The device of this process: the driver of a Ray cluster can have no GPU."""
    return "auto" if ray else device


@lock_output
def decide_run(
    run: Run,
    recipe: Recipe,
    device: str = "cpu",
    threads: int | None = None,
    progress: OpenProgress = ProgressBar,
    force: bool = False,
    neighbours: str = AUTO,
    ray: RaySearch | None = None,
) -> Funnel:
    """DECIDE: opens the device, writes the verdicts and the funnel, and moves products of other verdicts aside.

    Args:
        run: a scored run.
        recipe: the criteria to apply.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: host threads; None for all cores.
        progress: opens the listener to the phase.
        force: decide although the recipe names other models than those that scored.
        neighbours: index of the searches for near rows, or `auto` (`choose_index`).
        ray: the Ray cluster that searches for near rows, on its own `device`; None: this process searches.

    Returns:
        What each criterion dropped.

    Raises:
        DanqingError: shards or columns without scores, or other models.
    """
    device = _driver_device(device, ray)
    choose_index(neighbours, kind_of(device))
    with (
        connected(ray.address if ray else "") as module,
        run.logged(),
        open_device(device, threads) as opened,
        progress("decide", 0, "comparisons") as listener,
    ):
        if MERGED not in run.manifest and not run.manifest["counts"] and not run.unscored():
            _finish_scoring(run, read_damage(run.folder))  # the task or process that should do it was killed
        cluster = NeighbourCluster(module, ray, neighbours, listener) if ray else None
        funnel = decide(run, recipe, opened, listener, force, neighbours, cluster)
        note_verdicts(run)
        _move_stale(run, listener)
    return funnel


@lock_output
def list_neighbour_tasks(
    run: Run,
    recipe: Recipe,
    count: int,
    device: str = "cpu",
    threads: int | None = None,
    progress: OpenProgress = ProgressBar,
    force: bool = False,
    neighbours: str = AUTO,
) -> TaskList | None:
    """Lists the tasks of the first search for near-duplicates of a decision that is not done.

    Args:
        count: least number of tasks.

    For the other arguments see `decide_run`; for the result `list_tasks`.
    """
    choose_index(neighbours, kind_of(device))
    with run.logged(), open_device(device, threads) as opened, progress("decide", 0, "comparisons") as listener:
        return list_tasks(run, recipe, count, opened, listener, force, neighbours)


def run_neighbour_task(
    run: Run,
    number: int,
    recipe: Recipe | None = None,
    device: str = "cpu",
    threads: int | None = None,
    progress: OpenProgress = ProgressBar,
    neighbours: str = AUTO,
) -> TaskList:
    """Does a task of the latest list. Takes no lock, since other processes do other tasks at the same time.

    Args:
        number: of the task.
        recipe: must be that of the list; None: not compared.

    For the other arguments see `decide_run`.

    Returns:
        The list.

    Raises:
        DanqingError: no list, no such task, another recipe, or features that changed since.
    """
    choose_index(neighbours, kind_of(device))
    tasks = latest_list(run)
    if recipe and replace(recipe, models=run.recipe.models).hash != tasks.recipe_hash:
        raise DanqingError(
            f"{run.folder}: the tasks were listed with another recipe ({tasks.recipe_hash}); give the same --recipe "
            f"and --set, or none, or list them again: {list_again(run)}"
        )
    with open_device(device, threads) as opened, progress("neighbours", 0, "comparisons") as listener:
        run_task(run, tasks, number, opened, listener, neighbours)
    return tasks


def _move_stale(run: Run, listener: Progress) -> None:
    if moved := move_stale(run):
        listener.say(
            f"moved {', '.join(moved)} of the earlier verdicts to {run.folder / STALE}; "
            f"`danqing write {run.folder}` makes them again"
        )


@lock_output
def merge_runs(
    folders: Sequence[Path],
    output: Path,
    device: str = "cpu",
    threads: int | None = None,
    progress: OpenProgress = ProgressBar,
    neighbours: str = AUTO,
) -> tuple[Run, Funnel]:
    """MERGE: opens the device and makes one run of several.

    Args:
        folders: decided runs of the same recipe, models and layout.
        output: folder of the merged run.
        device, threads, progress, neighbours: see `decide_run`.

    Returns:
        The merged run, decided but not written, and its funnel.

    Raises:
        DanqingError: the runs cannot be merged; the message lists the differences.
    """
    choose_index(neighbours, kind_of(device))
    with open_device(device, threads) as opened, progress("merge", 0, "comparisons") as listener:
        run, funnel = merge(folders, output, opened, listener, neighbours)
        _move_stale(run, listener)
    return run, funnel


@lock_output
def write_run(
    run: Run,
    options: WriteOptions | None = None,
    progress: OpenProgress = ProgressBar,
    part: Share | None = None,
    ray: str = "",
) -> int:
    """WRITE: copies the kept pairs into shards, writes card and report; keeps files made from the same verdicts.

    Args:
        run: a decided run.
        options: format, size and order of the shards; None for the defaults.
        progress: opens the listener to the phase.
        part: only the shards of this part are written; the last part to end writes the files that describe all shards.
        ray: address of the Ray cluster that copies (`engine.run.cluster.connected`); empty for this process.

    Returns:
        Number of kept pairs of the whole run.

    Raises:
        DanqingError: no verdicts, or an input, scores or merged runs that changed since.
    """
    if part:
        part.check_ray(ray)
    check_current(run)
    with connected(ray), run.logged(part), progress("write", sum(shard.bytes for shard in run.shards)) as listener:
        verdicts = read_verdicts(run)
        copy = partial(copy_on_cluster, ray) if ray else None
        written = write(run, verdicts, listener, options or WriteOptions(), part, copy)
        report, digest = run.folder / "report.html", decision_digest(run, verdicts)
        with run.locked_manifest(part):  # parts that end at the same time make one report
            if written and not (is_stamped(report, digest) and report.with_suffix(".json").exists()):
                write_report(run, verdicts)
    return sum(shard.kept for shard in verdicts)


NO_ENDPOINT = "--endpoint: name at least one address, as http://HOST:8000/v1"
"""Error of `recaption` without a vision-language model."""


@lock_output
def recaption_run(
    run: Run, prompt: Prompt, settings: Settings, again: bool = False, progress: OpenProgress = ProgressBar
) -> Spans:
    """RECAPTION: opens the device and the client, asks for captions of the kept pictures, and writes the report.

    Args:
        run: a decided run.
        prompt: what is asked.
        settings: the vision-language model, the device that measures the recaptions, threads, part and metrics.
        again: see `Asking`.
        progress: see `decide_run`.

    Returns:
        Counts and times of the stages; `read` is the model.

    Raises:
        DanqingError: no verdicts, no endpoint or one that does not answer, or recaptions of another question.
    """
    check_current(run)
    if settings.vlm is None:
        raise DanqingError(NO_ENDPOINT)
    part = settings.part
    if part is not None and not isinstance(part, TaskPart):
        raise DanqingError(f"--part {part}: `recaption` has parts with numbers only; write I/N, for example 0/16")
    client = settings.vlm.open()
    question = Question(prompt.text, client.model, prompt.max_tokens, prompt.longest_edge, max_pixels(run))
    with (
        run.logged(part),
        open_device(settings.device, settings.threads) as opened,
        progress("recaption", 0, "pictures") as listener,
    ):
        models, spans = ModelSet(run.recipe.models), Spans()
        context = Settings(max_pixels=question.max_pixels).context(opened, models, ())
        asking, address = Asking(run, question, client, context, again, part), settings.metrics_address
        metrics = AskingMetrics(asking)
        with serve_metrics(spans, settings.metrics_port, address, opened, models, collectors=[metrics]):
            complete = recaption(asking, listener, spans)
    if complete:
        write_report(run)
    return spans


@lock_output
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


def calibrate_redundancy(
    run: Run,
    sample: int,
    seed: int = 0,
    within: Sequence[float] = (),
    device: str = "cpu",
    threads: int | None = None,
    progress: OpenProgress = ProgressBar,
) -> Calibrations:
    """CALIBRATE: opens the device and measures which copies and which other pictures a run's recipe joins.

    Args:
        run: a decided run; nothing is written to it.
        sample, seed, within: see `calibrate`.
        device, threads, progress: see `decide_run`.
    """
    with (
        native_stderr_to(Path(os.devnull)),
        open_device(device, threads) as opened,
        progress("calibrate", 0, "pictures") as listener,
    ):
        return calibrate(run, opened, listener, sample, seed, within)


@lock_output
def curate(
    inputs: Iterable[str],
    output: Path,
    recipe: Recipe,
    settings: Settings,
    options: WriteOptions | None = None,
    against: Sequence[Path] = (),
    excluded: Sequence[Path] = (),
    exclude_within: float | None = None,
    watcher: Watcher | None = None,
    progress: OpenProgress = ProgressBar,
    neighbours: str = AUTO,
) -> tuple[Run, Funnel, Spans]:
    """SCORE, DECIDE, WRITE; finished work is not repeated.

    Args:
        inputs, output, recipe, settings, watcher, progress: see `score_inputs`.
        options: see `write_run`.
        against: curated runs; pairs near one of their kept rows are dropped.
        excluded: folders of evaluation images, or runs of them; pairs near one of these images are dropped.
        exclude_within: cosine distance to evaluation images; None for that of the recipe's redundancy criterion.
        neighbours: see `decide_run`.

    Returns:
        The run, what each criterion dropped, and a span for each stage (see `score_inputs`).

    Raises:
        DanqingError: an input, a setting or a folder cannot be used; the message says which.
    """
    if settings.part:
        raise DanqingError("part: `curate` does a whole run; pass `part` to `score` and to `write`")
    WRITERS.named((options or WriteOptions()).output_format)  # an unknown format is an error now, not after scoring
    choose_index(neighbours, kind_of(_driver_device(settings.device, settings.ray)))
    for folder in against:
        Run.open(folder)
    references = {folder: reference_run_folder(folder, output) for folder in excluded}
    pictures = {folder: place for folder, place in references.items() if folder != place}
    for folder in pictures:
        find_shards([str(folder)], settings.layout)  # a wrong folder is reported before the scoring, not after it
    recipe = with_references(recipe, against, references.values(), exclude_within)
    with connected(settings.ray):
        run, spans = score_inputs(inputs, output, recipe, settings, watcher, progress)
        for folder, place in pictures.items():
            score_inputs(
                [str(folder)], place, features_recipe(recipe), replace(settings, limit=None), progress=progress
            )
        search = None
        if settings.ray:
            search = RaySearch(settings.ray, settings.device, settings.threads, settings.workers_per_gpu)
        device, threads = settings.device, settings.threads
        funnel = decide_run(run, recipe, device, threads, progress, neighbours=neighbours, ray=search)
        write_run(run, options, progress, ray=settings.ray)
    return run, funnel, spans
