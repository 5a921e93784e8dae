"""The commands that look at runs and at the machine: EXPLAIN, DIFF, TOPICS, PROFILE."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from danqing.engine.cli.app import RUNS, command
from danqing.engine.cli.options import (
    Inputs,
    LayoutOptions,
    Limit,
    LocalFolder,
    MachineOptions,
    PositiveInt,
    RecipeOptions,
    RunFolder,
    StageOptions,
    StorageOptions,
    is_folder,
    number_from,
    to_paths,
    whole_from,
)
from danqing.engine.cli.output import Json, OutputOptions, QuietOptions, print_json


@command("danqing explain out 000001234", "danqing explain out 000001234 --json", group=RUNS)
def explain(
    run: RunFolder,
    key: Annotated[str, Parameter(help="The pair's key, or its uid (32 hex digits).")],
    /,
    *,
    storage: StorageOptions = StorageOptions(),
    json: Json = False,
) -> None:
    """Show every score of one pair, and why it was kept or dropped."""
    from danqing.engine.report.explain import find_pairs, print_pair
    from danqing.engine.run.folder import Run

    opened = Run.open(run)
    pairs = find_pairs(opened, key)
    if json:
        print_json({"folder": run, "pairs": pairs})
        return
    for pair in pairs:
        print_pair(opened, pair)


@Parameter(name="*")
@dataclass(frozen=True)
class ToleranceOptions:
    """Limits within which two runs agree."""

    within: Annotated[
        float,
        Parameter(metavar="X", validator=number_from(0), help="Largest relative difference of a measured number."),
    ] = 1e-4
    cosine: Annotated[
        float, Parameter(metavar="X", validator=number_from(-1, 1), help="Smallest cosine of a pair's features.")
    ] = 0.999
    flips: Annotated[
        float,
        Parameter(
            metavar="X",
            validator=number_from(0, 1),
            help="Largest share of pairs with another verdict or group of near-duplicates.",
        ),
    ] = 0.001


@command("danqing diff run-on-cpu run-on-gpu", "danqing diff before after --flips 0.01 --json", group=RUNS)
def diff(
    first: Annotated[Path, Parameter(converter=to_paths, help="Folder of a decided run.")],
    second: Annotated[Path, Parameter(converter=to_paths, help="Folder of another decided run over the same input.")],
    /,
    *,
    tolerance: ToleranceOptions = ToleranceOptions(),
    storage: StorageOptions = StorageOptions(),
    json: Json = False,
) -> int:
    """Compare two runs over the same input, score by score.

    For runs made on another device, with other engines or another version. The exit status is 1 if they disagree.
    """
    from danqing.engine.report.differences import Tolerance, diff
    from danqing.engine.report.terminal import print_difference
    from danqing.engine.run.folder import Run

    limits = Tolerance(within=tolerance.within, cosine=tolerance.cosine, flips=tolerance.flips)
    found = diff(Run.open(first), Run.open(second), limits)
    if json:
        print_json({"agree": not found.objections, **asdict(found), "objections": found.objections})
    else:
        print_difference(found)
    return 1 if found.objections else 0


@command("danqing topics out", "danqing topics out --sample 20000 --smallest 50", group=RUNS)
def topics(
    run: RunFolder,
    /,
    *,
    sample: Annotated[PositiveInt, Parameter(metavar="N", help="Approximate number of captions.")] = 100_000,
    smallest: Annotated[
        PositiveInt | None,
        Parameter(
            metavar="N",
            validator=whole_from(2),
            help="Minimum number of captions in a topic (default: sample / 1000, at least 10).",
        ),
    ] = None,
    machine: MachineOptions = MachineOptions(),
    storage: StorageOptions = StorageOptions(),
    out: QuietOptions = QuietOptions(),
) -> None:
    """Find the topics of the kept captions.

    Embeddings of the captions under the run's text model, UMAP and HDBSCAN, and the words that distinguish each topic.
    Writes topics.json, topics.parquet and atlas.parquet (for embedding-atlas), and report.html with a map and pictures.
    """
    from danqing.engine.phases import topics_of
    from danqing.engine.report.terminal import print_topics
    from danqing.engine.run.folder import Run

    with out.progress(machine.note):
        found = topics_of(Run.open(run), sample, smallest, machine.chosen, machine.threads)
    if not out.quiet:
        print_topics(found)
        print(f"A map and pictures: {run / 'report.html'}")


TO_FOLDER = Parameter(converter=to_paths, n_tokens=1, validator=is_folder, metavar="DIR")
"""Parameter of a folder to write to."""


@command(
    "danqing report out", "danqing report out --figures figures", "danqing report before after -o compared", group=RUNS
)
def report(
    run: RunFolder,
    other: Annotated[
        Path | None, Parameter(converter=to_paths, help="Folder of another decided run, to show beside it.")
    ] = None,
    /,
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="Where to write (default: RUN)."), TO_FOLDER
    ] = None,
    figures: Annotated[Path | None, Parameter(help="Also write each figure here, as SVG."), TO_FOLDER] = None,
    storage: StorageOptions = StorageOptions(),
    out: QuietOptions = QuietOptions(),
) -> None:
    """Make report.html and report.json again, or comparison.html of two runs.

    A self-contained page: funnel, distributions, the effect of other thresholds, pictures, and properties of the pairs.
    `write` and `topics` also make it; this command writes no shards.
    """
    from danqing.engine.report.html import write_report
    from danqing.engine.run.folder import Run

    opened = [Run.open(folder) for folder in (run, other) if folder]
    for each in opened:
        each.check_decided()
    page = write_report(opened[0], other=opened[1] if other else None, output=output, figures=figures)
    if not out.quiet:
        print(page)


@command(
    "danqing profile 'shards/00000.tar' -o profile",
    "danqing profile shards/ -o profile --limit 2000 --device cuda",
    group=RUNS,
)
def profile(
    inputs: Inputs,
    /,
    *,
    output: LocalFolder,
    limit: Limit = None,
    recipe: RecipeOptions = RecipeOptions(),
    layout: LayoutOptions = LayoutOptions(),
    scoring: StageOptions = StageOptions(),
    storage: StorageOptions = StorageOptions(),
    out: OutputOptions = OutputOptions(),
) -> None:
    """Measure where the time of scoring goes.

    Scores the pairs twice, sequentially and pipelined, and discards the scores. Writes profile.json, profile.html and
    trace.json (for ui.perfetto.dev).
    """
    from danqing.profiling.profiler import profile
    from danqing.profiling.report import print_profile

    with out.progress(scoring.machine.note):
        found = profile(inputs, output, recipe.load(), scoring.settings(layout, limit=limit))
    if out.finish(found.to_dict()):
        return
    print_profile(found)
    print(f"Timeline: {output / 'profile.html'}; trace for ui.perfetto.dev: {output / 'trace.json'}")
