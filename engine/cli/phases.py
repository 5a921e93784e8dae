"""The commands that run the phases: SELECT, SCORE, DECIDE, WRITE, and several of them in a row."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from danqing.engine.cli.app import GENERAL, PHASES, command
from danqing.engine.cli.options import (
    OTHER_DATA,
    SEVERAL,
    Encoding,
    FollowLinks,
    ForceModels,
    ForceResume,
    Inputs,
    LayoutOptions,
    Limit,
    LocalFolder,
    MachineOptions,
    Natural,
    Neighbours,
    OutputFolder,
    PartOrAny,
    PositiveInt,
    Ray,
    RecipeOptions,
    RunFolder,
    SeveralOptions,
    ShardOptions,
    StageOptions,
    StorageOptions,
    Strict,
    TextOptions,
    number_from,
    to_paths,
)
from danqing.engine.cli.output import OutputOptions, stages_of
from danqing.engine.core.table_names import CAPTION_COLUMNS, URL_COLUMNS

if TYPE_CHECKING:
    from danqing.engine.core.spans import Spans
    from danqing.engine.decide.tasks import TaskList
    from danqing.engine.run.folder import Run
    from danqing.engine.run.part import Share


@Parameter(name="*", group=OTHER_DATA)
@dataclass(frozen=True)
class ReferenceOptions:
    """Other data that pairs are compared with."""

    against: Annotated[
        tuple[Path, ...],
        Parameter(
            converter=to_paths,
            n_tokens=1,
            metavar="RUN",
            help="Drop pairs whose picture is a near-duplicate of one that this curated run kept, or whose caption "
            "is near one of its captions, if the recipe compares captions; repeatable.",
        ),
    ] = ()
    exclude_similar_to: Annotated[
        tuple[Path, ...],
        Parameter(
            converter=to_paths,
            n_tokens=1,
            metavar="DIR",
            help="Drop pairs whose picture is near one of an evaluation set: a folder of pictures or shards, or a run; "
            "repeatable.",
        ),
    ] = ()
    exclude_within: Annotated[
        float | None,
        Parameter(
            metavar="DISTANCE",
            validator=number_from(0, 2),
            help="Drop pairs within this cosine distance of evaluation data (default: the recipe's for redundancy).",
        ),
    ] = None


@Parameter(name="*", group=SEVERAL)
@dataclass(frozen=True)
class TaskOptions:
    """The search for near-duplicates as tasks for many machines."""

    neighbour_tasks: Annotated[
        PositiveInt | None,
        Parameter(
            metavar="N",
            help="List at least N tasks for the first search that is not done, and decide nothing. Any machine can do "
            "any task, in any order; `decide` then unites the results. With --ray: decide, with at least N tasks per "
            "search.",
        ),
    ] = None
    neighbour_task: Annotated[
        Natural | None, Parameter(metavar="I", help="Do task I of the list, from 0, and decide nothing.")
    ] = None


def _any_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}, any case"


@Parameter(name="*")
@dataclass(frozen=True)
class ColumnOptions:
    """The columns of a table that hold URL and caption."""

    url_col: Annotated[
        str, Parameter(metavar="NAME", help=f"Column of the URLs (default: {_any_of(URL_COLUMNS)}).")
    ] = ""
    caption_col: Annotated[
        str, Parameter(metavar="NAME", help=f"Column of the captions (default: {_any_of(CAPTION_COLUMNS)}).")
    ] = ""
    encoding: Encoding = ""
    follow_links: FollowLinks = False


@command(
    "danqing select 'cc/*.parquet' more.csv.gz -o chosen --caption-col title",
    "danqing select 'cc/*.parquet' -o tried --limit 10000 --json",
    "",
    "chosen/urls/       the kept rows, all their columns and text_clean:",
    "                   the input of img2dataset",
    "chosen/verdicts/   every row: keep, dropped_by, its scores, its error",
    "chosen/funnel.json what each criterion dropped",
    group=PHASES,
)
def select(
    tables: Annotated[
        list[str],
        Parameter(
            converter=to_paths,
            help="Parquet, CSV or JSON lines (.csv.gz and .jsonl.gz too): files, folders, globs, brace ranges.",
        ),
    ],
    /,
    *,
    output: OutputFolder,
    columns: ColumnOptions = ColumnOptions(),
    limit: Limit = None,
    recipe: RecipeOptions = RecipeOptions(),
    text: TextOptions = TextOptions(),
    machine: MachineOptions = MachineOptions(),
    force: ForceResume = False,
    strict: Strict = False,
    storage: StorageOptions = StorageOptions(),
    out: OutputOptions = OutputOptions(),
) -> int:
    """Drop rows of URL tables before anything is downloaded.

    Applies the recipe's criteria that need no picture. Continues an interrupted selection.
    """
    from danqing.engine.core.damage import read_damage, summary
    from danqing.engine.report.notes import funnel_notes
    from danqing.engine.report.terminal import ProgressBar, print_funnel, print_spans
    from danqing.engine.select.selection import select
    from danqing.engine.sources.tables import Columns, encodings, find_tables
    from danqing.engine.sources.text import check_encoding

    layout = LayoutOptions(follow_links=columns.follow_links)
    settings = StageOptions(text, machine=machine, force=force).settings(layout, limit=limit)
    with out.progress(machine.note):
        chosen = select(
            tables,
            output,
            recipe.load(),
            Columns(columns.url_col, columns.caption_col, check_encoding(columns.encoding)),
            settings,
            ProgressBar,
        )
    damage = read_damage(chosen.folder)
    status = 3 if strict and damage else 0
    other = {} if columns.encoding else encodings(file.path for file in find_tables(tables, columns.follow_links))
    curate = ["danqing", "curate", str(chosen.folder / "images"), "-o", "curated"]
    curate += [*recipe.arguments, *text.arguments, *storage.arguments]
    next_commands = [storage.environment + chosen.download_command(), shlex.join(curate)]
    result = {
        "folder": chosen.folder,
        "urls": chosen.urls,
        "kept": chosen.funnel.kept,
        "funnel": chosen.funnel.to_dict(),
        "judged_after_download": chosen.deferred_criteria,
        "damaged": len(damage),
        "encodings": other,
        "stages": stages_of(chosen.spans),
        "next": next_commands,
    }
    notes = funnel_notes(chosen.funnel)
    if out.finish(result, notes):
        return status
    if not chosen.spans:
        print(f"{chosen.folder}: already selected; nothing to do")
    print_spans(chosen.spans)
    print_funnel(chosen.funnel)
    for encoding, count in other.items():
        print(f"Read as {encoding}: {count:,} tables; --encoding names another")
    for line in summary(chosen.folder, damage):
        print(line)
    print(f"\n{chosen.funnel.kept} URLs in {chosen.urls}")
    if chosen.deferred_criteria:
        print(f"Judged after the download: {', '.join(chosen.deferred_criteria)}")
    print("Next:", *next_commands, sep="\n  ")
    out.print_notes(notes)
    return status


@command(
    "danqing curate 'shards/{00000..00041}.tar' -o out",
    "danqing curate shards/ -o tried --limit 1000     the first 1,000 pairs only",
    "danqing curate shards/ -o out --blocklist domains.txt --set words.max=40",
    "danqing curate new/ -o out2 --against out --exclude-similar-to benchmarks/",
    group=PHASES,
)
def curate(
    inputs: Inputs,
    /,
    *,
    output: OutputFolder,
    limit: Limit = None,
    recipe: RecipeOptions = RecipeOptions(),
    layout: LayoutOptions = LayoutOptions(),
    scoring: StageOptions = StageOptions(),
    several: SeveralOptions = SeveralOptions(),
    other: ReferenceOptions = ReferenceOptions(),
    shards: ShardOptions = ShardOptions(),
    neighbours: Neighbours = "auto",
    strict: Strict = False,
    storage: StorageOptions = StorageOptions(),
    out: OutputOptions = OutputOptions(),
) -> int:
    """Score, decide and write in one command.

    Continues an interrupted run; leaves a finished one unchanged.
    """
    from danqing.engine.phases import curate
    from danqing.engine.report.notes import run_notes
    from danqing.engine.report.terminal import print_funnel

    with out.progress(several.note(scoring.machine)):
        run, funnel, spans = curate(
            inputs, output, recipe.load(), scoring.settings(layout, several, limit), shards.load(),
            other.against, other.exclude_similar_to, other.exclude_within, several.watcher,
            neighbours=neighbours,
        )  # fmt: skip
    result = {**_scored(run, spans), "kept": funnel.kept, "funnel": funnel.to_dict(), **_written(run.folder, shards)}
    notes = run_notes(run, funnel)
    if not out.finish(result, notes):
        if not spans:
            print(f"{run.folder}: already scored; nothing was scored again")
        _print_scored(run, spans)
        print_funnel(funnel)
        print(f"\n{_written_line(run.folder, funnel.kept)}")
        out.print_notes(notes)
    return _status(run, strict)


@command(
    "danqing score 'shards/*.tar' -o out --recipe danqing",
    "danqing score 'shards/*.tar' -o out --devices 0,1,2,3 --metrics-port 9100",
    "danqing score shards/ -o tried --limit 1000 --score-everything --json",
    "danqing score shards/ -o out --part $SLURM_ARRAY_TASK_ID/16",
    "danqing score shards/ -o out --part any      on as many machines as are free",
    "danqing score shards/ -o out --ray auto --device cuda",
    group=PHASES,
)
def score(
    inputs: Inputs,
    /,
    *,
    output: OutputFolder,
    limit: Limit = None,
    recipe: RecipeOptions = RecipeOptions(),
    layout: LayoutOptions = LayoutOptions(),
    scoring: StageOptions = StageOptions(),
    several: SeveralOptions = SeveralOptions(),
    part: PartOrAny = "",
    strict: Strict = False,
    storage: StorageOptions = StorageOptions(),
    out: OutputOptions = OutputOptions(),
) -> int:
    """Compute the scores of every pair, once.

    The expensive phase. Rows that an early criterion drops do not reach the costly stages.
    """
    from danqing.engine.phases import score_inputs
    from danqing.engine.report.notes import run_notes

    settings = scoring.settings(layout, several, limit, part)
    with out.progress(several.note(scoring.machine)):
        run, spans = score_inputs(inputs, output, recipe.load(), settings, several.watcher)
    if settings.part and (missing := len(run.unscored())):
        return _part_scored(run, settings.part, missing, strict, out)
    notes = run_notes(run)
    if not out.finish(_scored(run, spans), notes):
        _print_scored(run, spans)
        done = "scored" if spans else "scored already; nothing to do"
        print(f"{run.folder}: {done}. Next: {shlex.join(['danqing', 'decide', str(run.folder), *storage.arguments])}")
        out.print_notes(notes)
    return _status(run, strict)


def _part_scored(run: Run, part: Share, missing: int, strict: bool, out: OutputOptions) -> int:
    """Prints how many shards have no scores after a part; returns the exit status."""
    from danqing.engine.phases import damage_of_part

    damaged = len(damage_of_part(run, part))
    result = {"folder": run.folder, "part": part, "input_shards": len(run.shards), "unscored": missing}
    if not out.finish({**result, "damaged": damaged}):
        print(f"{run.folder}: part {part} is scored; {missing} shards of other parts have no scores yet")
    return 3 if strict and damaged else 0


def _scored(run: Run, spans: Spans) -> dict[str, Any]:
    """Returns the result of SCORE as JSON."""
    from danqing.engine.core.damage import read_damage

    return {
        "folder": run.folder,
        "input_shards": len(run.shards),
        "already_scored": not spans,
        "stages": stages_of(spans),
        "refused_engines": run.manifest.get("refused_engines", {}),
        "engines": run.manifest.get("engines", {}),
        "damaged": len(read_damage(run.folder)),
        "encodings": run.manifest.get("encodings", {}),
        "profile": run.folder / "profile" / "profile.json" if spans.profiled else None,
    }


def _print_scored(run: Run, spans: Spans) -> None:
    from danqing.engine.core.damage import read_damage, summary
    from danqing.engine.report.terminal import print_spans

    print_spans(spans)
    if spans.profiled:
        profile = json.loads((run.folder / "profile" / "profile.json").read_text(encoding="utf-8"))
        print(f"{profile['verdict']} More in {run.folder / 'profile' / 'profile.html'}")
    for reason in run.manifest.get("refused_engines", {}).values():
        print(f"Scored without an engine that is in use: {reason}")
    for encoding, count in run.manifest.get("encodings", {}).items():
        print(f"Read as {encoding}: {count:,} texts; --encoding names another")
    for line in summary(run.folder, read_damage(run.folder)):
        print(line)


def _status(run: Run, strict: bool) -> int:
    """The exit status: 3 with --strict if anything of the input was damaged."""
    from danqing.engine.core.damage import read_damage

    return 3 if strict and read_damage(run.folder) else 0


@command(
    "danqing decide out --set words.max=40",
    "danqing decide out --recipe my-recipe.yaml --json",
    "danqing decide out --neighbour-tasks 500     on many machines: list tasks,",
    "danqing decide out --neighbour-task 17       do each one anywhere,",
    "danqing decide out                           and unite what they found",
    "danqing decide out --ray auto --device cuda  all of this on a Ray cluster",
    group=PHASES,
)
def decide(
    run: RunFolder,
    /,
    *,
    recipe: RecipeOptions = RecipeOptions(),
    machine: MachineOptions = MachineOptions(),
    neighbours: Neighbours = "auto",
    tasks: TaskOptions = TaskOptions(),
    ray: Ray = "",
    force: ForceModels = False,
    storage: StorageOptions = StorageOptions(),
    report: Annotated[bool, Parameter(help="Also make report.html and report.json.")] = False,
    out: OutputOptions = OutputOptions(),
) -> None:
    """Apply a recipe's thresholds to a scored run.

    Takes seconds and rewrites verdicts and funnel. If verdicts change, shards, report and card of the earlier ones are
    moved to OUT/stale. Without --recipe: the recipe the run was scored with.
    """
    from danqing.engine.core.errors import DanqingError
    from danqing.engine.decide.cluster import TASKS, RaySearch
    from danqing.engine.phases import decide_run, list_neighbour_tasks, run_neighbour_task
    from danqing.engine.recipe.reading import recipe_from_dict
    from danqing.engine.report.notes import run_notes
    from danqing.engine.report.terminal import print_funnel
    from danqing.engine.run.folder import Run
    from danqing.engine.stages import model_roles
    from danqing.engine.stages.columns import known_columns

    opened = Run.open(run)
    own = opened.manifest["recipe"]
    if recipe.recipe:
        chosen = recipe.load()
    else:
        chosen = recipe_from_dict(own, "run.json", recipe.settings, known_columns(), model_roles())
    where: dict[str, Any] = {"device": machine.chosen, "threads": machine.threads, "neighbours": neighbours}
    if tasks.neighbour_task is not None:
        if ray:
            raise DanqingError("--neighbour-task does one task here, --ray all tasks on a cluster; give one of them")
        with out.progress(machine.note):
            given = chosen if recipe.arguments else None
            listed = run_neighbour_task(opened, tasks.neighbour_task, given, **where)
        count = len(listed.pairs)
        if not out.finish({"folder": run, "task": tasks.neighbour_task, "tasks": count}):
            print(f"task {tasks.neighbour_task} of {count} of {listed.criterion} is done")
        return
    if tasks.neighbour_tasks is not None and not ray:
        with out.progress(machine.note):
            wanted = list_neighbour_tasks(opened, chosen, tasks.neighbour_tasks, force=force, **where)
        _print_tasks(run, wanted, recipe.arguments, storage.arguments, out)
        return
    search = None
    if ray:
        search = RaySearch(ray, machine.chosen, machine.threads, tasks=tasks.neighbour_tasks or TASKS)
    with out.progress("" if ray else machine.note):
        funnel = decide_run(opened, chosen, force=force, ray=search, **where)
    if report:
        from danqing.engine.report.html import write_report

        write_report(opened)
    notes = run_notes(opened, funnel)
    if out.finish({"folder": run, "kept": funnel.kept, "funnel": funnel.to_dict()}, notes):
        return
    print_funnel(funnel)
    print(f"Next: {shlex.join(['danqing', 'write', str(run), *storage.arguments])}")
    out.print_notes(notes)


def _print_tasks(run: Path, tasks: TaskList | None, recipe: list[str], storage: list[str], out: OutputOptions) -> None:
    count = len(tasks.pairs) if tasks else 0
    if out.finish({"folder": run, "criterion": tasks.criterion if tasks else None, "tasks": count}):
        return
    decide = shlex.join(["danqing", "decide", str(run), *recipe, *storage])
    if not tasks:
        print(f"no search is left to do; next: {decide}")
        return
    print(f"{count} tasks of {tasks.criterion} over {tasks.rows:,} rows, 0 to {count - 1}; do each of them anywhere:")
    print(f"  {shlex.join(['danqing', 'decide', str(run), *storage])} --neighbour-task 0\nthen: {decide}")


@command(
    "danqing write out",
    "danqing write out --output-format parquet --shard-size 5000 --shuffle 1",
    "danqing write out --part 3/16",
    "danqing write out --part any                 on as many machines as are free",
    group=PHASES,
)
def write(
    run: RunFolder,
    /,
    *,
    shards: ShardOptions = ShardOptions(),
    part: PartOrAny = "",
    ray: Ray = "",
    storage: StorageOptions = StorageOptions(),
    out: OutputOptions = OutputOptions(),
) -> None:
    """Copy the kept pairs into new shards.

    Writes the original picture bytes, clean captions, kept_uids.npy, README.md (a dataset card) and report.html.
    Shards that match the present verdicts are left unchanged.
    """
    from danqing.engine.phases import write_run
    from danqing.engine.run.claims import read_share
    from danqing.engine.run.folder import Run

    task = read_share(part)
    with out.progress():
        opened = Run.open(run)
        kept = write_run(opened, shards.load(), part=task, ray=ray)
    complete = "written" in opened.manifest
    if out.finish({"folder": run, "kept": kept, "complete": complete, **_written(run, shards)}):
        return
    if complete:
        print(_written_line(run, kept))
    else:
        print(f"{run}: part {part} is written; shards of other parts are missing")


def _written(folder: Path, shards: ShardOptions) -> dict[str, Any]:
    """Returns the result of WRITE as JSON."""
    return {"output_format": shards.output_format, "shards": folder / "shards", "report": folder / "report.html"}


def _written_line(folder: Path, kept: int) -> str:
    if not kept:
        return f"nothing was kept, so there are no shards; the reasons are in {folder / 'report.html'}"
    return f"{kept} pairs in {folder / 'shards'}; pictures in {folder / 'report.html'}"


@command(
    "danqing merge batch1 batch2 -o all",
    "danqing merge batch1 batch2 batch3 -o all    only batch3 is compared",
    group=PHASES,
)
def merge(
    runs: Annotated[list[Path], Parameter(converter=to_paths, help="Folders of decided runs.")],
    /,
    *,
    output: OutputFolder,
    shards: ShardOptions = ShardOptions(),
    machine: MachineOptions = MachineOptions(),
    neighbours: Neighbours = "auto",
    strict: Strict = False,
    storage: StorageOptions = StorageOptions(),
    out: OutputOptions = OutputOptions(),
) -> int:
    """Merge runs into one, without near-duplicates between them.

    Applies the redundancy criterion to the rows that each run kept, then writes. A run that is added later is compared
    with the others, which are not compared with each other again.
    """
    from danqing.engine.core.damage import read_damage, summary
    from danqing.engine.phases import merge_runs, write_run
    from danqing.engine.report.notes import run_notes
    from danqing.engine.report.terminal import print_funnel

    options = shards.load()  # wrong ones are refused before the runs are compared
    with out.progress(machine.note):
        run, funnel = merge_runs(runs, output, machine.chosen, machine.threads, neighbours=neighbours)
        kept = write_run(run, options)
    damage = read_damage(run.folder)
    result = {"folder": run.folder, "kept": kept, "funnel": funnel.to_dict(), **_written(run.folder, shards)}
    notes = run_notes(run, funnel)
    if not out.finish({**result, "damaged": len(damage)}, notes):
        print_funnel(funnel)
        for line in summary(run.folder, damage):
            print(line)
        print(f"\n{_written_line(run.folder, kept)}")
        out.print_notes(notes)
    return 3 if strict and damage else 0


@command("danqing demo", "danqing demo -o /tmp/demo --device cpu", "danqing demo --train", group=GENERAL)
def demo(
    *,
    output: LocalFolder = Path("demo"),
    train: Annotated[
        bool, Parameter(help="Also train a small model on the kept pairs and on as many raw ones, and compare the two.")
    ] = False,
    scoring: StageOptions = StageOptions(),
) -> None:
    """Curate a small crawl with known defects, and count what was caught.

    Real photographs with true captions, and planted defects for every criterion except unsafe_image.
    """
    from danqing.engine.demo import run_demo
    from danqing.engine.report.terminal import display

    with display(note=scoring.machine.note):
        run_demo(output, scoring.settings())
        if train:
            from danqing.engine.demo.training import compare_trainings, print_comparison

            print_comparison(compare_trainings(output, scoring.settings()))
