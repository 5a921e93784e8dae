"""`danqing evaluate` and `danqing probe`: how good a model is, and what it knows."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from danqing.engine.cli.app import MODELS, command
from danqing.engine.cli.options import (
    MACHINE,
    MachineOptions,
    OptionalFile,
    PositiveInt,
    Resizer,
    StorageOptions,
    StrictEngines,
    Suites,
    is_file,
    number_from,
    to_paths,
)
from danqing.engine.cli.output import OutputOptions
from danqing.engine.core.errors import DanqingError

if TYPE_CHECKING:
    from danqing.engine.run.settings import Settings

Models = Annotated[
    list[str],
    Parameter(
        help="A folder with the cards of both towers, the common beginning of their names (siglip2-b-16-256), "
        "IMAGE_CARD,TEXT_CARD, or a recipe. MODEL@PART runs the engines with PART in their name (@fp8), MODEL@model "
        "none; by default those in use.",
    ),
]
OutputFile = Annotated[OptionalFile, Parameter(name=["--output", "-o"], validator=is_file)]


@Parameter(name="*", group=MACHINE)
@dataclass(frozen=True)
class TowerOptions:
    """How the towers are run."""

    machine: MachineOptions = field(default_factory=MachineOptions)
    resizer: Resizer = "auto"
    strict_engines: StrictEngines = False

    def settings(self) -> Settings:
        """Returns the options as the engine takes them."""
        from danqing.engine.run.settings import settings_from

        engines = {"resizer": self.resizer, "strict_engines": self.strict_engines}
        return settings_from(asdict(self.machine) | engines)


@command(
    "danqing evaluate embedded --suite demo                       retrieval, no download",
    "danqing evaluate siglip2-b-16-256 --suite ELEVATER -o evaluation.json",
    "danqing evaluate trained/model --suite ELEVATER --against evaluation.json",
    "danqing evaluate siglip2-b-16-256@model siglip2-b-16-256@fp8 --suite ELEVATER",
    group=MODELS,
)
def evaluate(
    models: Models,
    /,
    *,
    suite: Annotated[
        Suites,
        Parameter(
            help="demo, digits, a data set or a folder of data sets: label_cn.txt and test/000/ (ELEVATER), "
            "clip-benchmark's shards, SPLIT_texts.jsonl and SPLIT_imgs.tsv (MUGE, Flickr30K-CN, COCO-CN), a table of "
            "captions, *-images-idx3-ubyte, a run, shards. Repeatable.",
        ),
    ],
    against: Annotated[OptionalFile, Parameter(help="Compare with the first model of an evaluation.json.")] = None,
    max_drop: Annotated[
        float | None,
        Parameter(
            metavar="X", validator=number_from(0, 1), help="Exit with status 1 if a metric falls by more than X."
        ),
    ] = None,
    templates: Annotated[OptionalFile, Parameter(help="Templates with {c} for the class's name, one a line.")] = None,
    limit: Annotated[
        PositiveInt | None, Parameter(metavar="N", help="Only the first N pictures of each data set.")
    ] = None,
    strict: Annotated[bool, Parameter(help="Exit with status 3 if a picture does not decode.")] = False,
    output: Annotated[OutputFile, Parameter(help="evaluation.json.")] = None,
    towers: TowerOptions = TowerOptions(),
    storage: StorageOptions = StorageOptions(),
    out: OutputOptions = OutputOptions(),
) -> int:
    """Measure zero-shot classification and retrieval.

    Several models are compared with the first, or with --against: differences with a 95 % interval, the same pictures
    drawn for both. Names of data sets that the DanQing paper reports have its figures beside them.
    """
    from danqing.engine.evaluate.models import evaluate_models
    from danqing.engine.evaluate.results import averages_of, compare, read_evaluation, write_evaluations
    from danqing.engine.report.evaluations import print_evaluations
    from danqing.engine.report.terminal import ProgressBar

    reference = read_evaluation(against) if against else None
    if max_drop is not None and reference is None and len(models) < 2:
        raise DanqingError("--max-drop: give something to compare with, --against FILE or a second MODEL")
    with out.progress(towers.machine.note):
        found = evaluate_models(models, suite, towers.settings(), templates, limit, ProgressBar)
    if output:
        write_evaluations(output, found)
    compared = compare(found, reference)
    drop, metric = compared.largest_drop
    failed = max_drop is not None and drop > max_drop
    broken = sum(len(row.broken) for row in found[0].rows)
    rows = [row.to_dict(outcomes=False) for evaluation in found for row in evaluation.rows]
    result = {"rows": rows, "averages": [*averages_of(found)], "differences": compared.to_dicts(found)}
    if not out.finish(result | {"largest_drop": drop}):
        print_evaluations(found, compared)
    if failed and not out.quiet:
        print(f"danqing: {metric} fell by {drop:.4f}, --max-drop allows {max_drop}", file=sys.stderr)
    return 1 if failed else 3 if strict and broken else 0


@command(
    "danqing probe siglip2-b-16-256 trained/model --text 黑神话悟空 --images a.jpg b.jpg c.jpg -o probe.html",
    group=MODELS,
)
def probe(
    models: Models,
    /,
    *,
    text: Annotated[
        list[str], Parameter(consume_multiple=(1, None), metavar="T", help="Phrases, each compared with each picture.")
    ],
    images: Annotated[
        list[Path],
        Parameter(converter=to_paths, consume_multiple=(1, None), metavar="FILE", help="Pictures."),
    ],
    output: Annotated[OutputFile, Parameter(help="Also write a page (.html).")] = None,
    towers: TowerOptions = TowerOptions(),
    out: OutputOptions = OutputOptions(),
) -> None:
    """Compare phrases with pictures, model by model: does it know a new concept?"""
    from danqing.engine.evaluate.probe import probe
    from danqing.engine.report.evaluations import print_probe, write_probe

    with out.progress(towers.machine.note):
        found = probe(models, text, images, towers.settings())
    if output:
        write_probe(output, found)
    if not out.finish(found.to_dict()):
        print_probe(found)
