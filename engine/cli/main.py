"""The `danqing` command: one thin function a subcommand."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from danqing import __version__
from danqing.engine.cli.models import add_models_commands
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.memory import read_size
from danqing.engine.recipe.reading import Recipe, builtin_names, load_recipe

if TYPE_CHECKING:
    from danqing.engine.core.spans import Spans
    from danqing.engine.run.folder import Run
    from danqing.engine.run.settings import Settings
    from danqing.engine.score.workers import Watcher

DESCRIPTION = """\
Turns crawled Chinese image-text pairs into a training set: the DanQing recipe, score → decide → write.

  danqing demo                                   a small crawl with planted defects, start to finish
  danqing select 'urls/*.parquet' -o chosen      URLs and captions: what can be dropped before any download
  danqing curate 'shards/{00000..00041}.tar' -o out --recipe embedded
  danqing decide out --set words.max=40          other thresholds, in seconds, without scoring again
  danqing merge batch1 batch2 -o all             one run of several, without what they have in common
  danqing explain out 000001234                  every score of one pair, and why it was dropped
  danqing profile 'shards/00000.tar' -o profile  which stage limits, and what would lift it
  danqing diff run-on-cpu run-on-gpu             do two runs agree? score by score
  danqing models list                            the models there are, and the engines compiled of them
"""

SELECT_EXAMPLE = """\
example:
  danqing select 'cc/*.parquet' more.csv.gz -o chosen --caption-col alt_text --blocklist bad-domains.txt

  chosen/urls/00000.parquet, …       the kept rows, all their columns and text_clean: img2dataset's input
  chosen/verdicts/00000.parquet, …   every row: keep, dropped_by, its scores, and what was wrong with it
  chosen/funnel.json                 what each criterion dropped
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0 done, 1 `diff` found a difference or `models verify` found that parity fails, 2 bad input,
        130 interrupted.
    """
    options = build_parser().parse_args(arguments)
    try:
        return options.function(options) or 0
    except DanqingError as problem:
        print(f"danqing: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ndanqing: interrupted; finished shards are kept, the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `danqing … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="danqing", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"danqing {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        function: Callable[[argparse.Namespace], int | None], text: str, more: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__, help=text, description=f"{text}. {more}", parents=list(parents))
        sub.set_defaults(function=function)
        return sub

    recipe, inputs, run, device = _recipe_options(), _input_options(), _run_options(), _device_options()
    scoring, pictures, output, long_run = _scoring_options(), _picture_options(), _output_options(), _long_run_options()
    models = _model_options()
    command(
        curate, "score, decide and write, in a row",
        "An interrupted run goes on where it stopped; a finished one is left as it is.",
        inputs, recipe, scoring, pictures, models, output, _reference_options(), device, long_run,
    )  # fmt: skip
    command(
        score, "compute the scores of every pair, once",
        "The expensive phase. Rows that an early criterion drops are spared the costly stages.",
        inputs, recipe, scoring, pictures, models, device, long_run,
    )  # fmt: skip
    command(
        decide, "apply a recipe's thresholds to a scored run",
        "Takes seconds and rewrites verdicts and funnel only. Without --recipe: the recipe the run was scored with.",
        run, recipe, device,
    )  # fmt: skip
    command(
        write, "copy the kept pairs into new shards",
        "Original picture bytes, clean captions, kept_uids.npy and report.html.",
        run, output,
    )  # fmt: skip
    several = command(
        merge, "make one run of several, without what they have in common",
        "Redundancy among the rows that survived in each run, then writing. A run that is added later is compared with "
        "the others; those are not compared with each other again.",
        output, device,
    )  # fmt: skip
    several.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a decided run")
    several.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the merged run")
    tables = command(
        select, "drop rows of URL tables before anything is downloaded",
        "Applies the recipe's criteria that need no picture, a part at a time; an interrupted selection goes on.",
        recipe, scoring, device,
    )  # fmt: skip
    tables.formatter_class = argparse.RawDescriptionHelpFormatter
    tables.epilog = SELECT_EXAMPLE
    _add_table_options(tables)
    about = command(
        topics, "say what the kept captions are about",
        "The captions' embeddings under the run's text model, UMAP and HDBSCAN; the words that tell each topic. Writes "
        "topics.json and topics.parquet, and report.html with a map and pictures.",
        run, device,
    )  # fmt: skip
    about.add_argument(
        "--sample", type=int, default=100_000, metavar="N", help="about so many captions (default: 100000)"
    )
    about.add_argument(
        "--smallest", type=int, metavar="N", help="captions that make a topic (default: sample / 1000, ≥ 10)"
    )
    key = command(
        explain, "show every score of one pair, and why it was kept or dropped", "Takes the pair's key or its uid.", run
    )
    key.add_argument("key", metavar="KEY", help="the pair's key, or its uid (32 hex digits)")
    command(
        profile, "show where the time of scoring goes",
        "Scores the pairs twice, stages in turn and at once, and keeps neither. Writes profile.json, profile.html and "
        "trace.json (for ui.perfetto.dev).",
        inputs, recipe, scoring, pictures, models, device,
    )  # fmt: skip
    runs = command(
        diff, "say whether two runs over the same input agree",
        "For runs made on another device, with other engines or another version. Exit status 1 if they do not.",
    )  # fmt: skip
    runs.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="folder of a decided run")
    for name, value, text in (
        ("within", 1e-4, "largest relative difference of a measured number"),
        ("cosine", 0.999, "least cosine of a pair's features"),
        ("flips", 0.001, "largest share of pairs with another verdict or set"),
    ):
        runs.add_argument(f"--{name}", type=float, default=value, metavar="X", help=f"{text} (default: {value})")
    out = command(
        demo, "curate a small crawl with known defects, and count what was caught",
        "Real photographs with true captions, and a planted defect for every criterion of the recipe.",
        scoring, pictures, device,
    )  # fmt: skip
    out.add_argument("-o", "--output", type=Path, default=Path("demo"), metavar="OUT", help="folder (default: demo)")
    add_models_commands(commands, recipe)
    return parser


def _recipe_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("recipe")
    group.add_argument("--recipe", metavar="NAME|FILE", help=f"{', '.join(builtin_names())}, or a YAML file")
    group.add_argument(
        "--set", action="append", default=[], metavar="NAME.KEY=VALUE",
        help="override one value, e.g. words.max=40 or models.image_embedding=my-card.yaml; repeatable",
    )  # fmt: skip
    return parser


def _input_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT",
        help="WebDataset shards (.tar), Parquet with pictures, tables (.csv, .jsonl) that name picture files, folders "
        "of any of these or of pictures with .txt beside them; globs and brace ranges ({00000..00041}.tar)",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the run")
    group = parser.add_argument_group("input layout")
    group.add_argument(
        "--image-key", metavar="NAME,…",
        help="what holds the picture: extension of a member, or column (default: jpg, png, …, image, file_name)",
    )  # fmt: skip
    group.add_argument(
        "--caption-key", metavar="NAME,…",
        help="what holds the caption: extension, .json field or column (default: txt, text, caption, alt_text)",
    )  # fmt: skip
    return parser


def _add_table_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="TABLE",
        help="Parquet, CSV or JSON lines (.csv.gz and .jsonl.gz too): files, folders, globs, brace ranges",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder to write to")
    parser.add_argument("--url-col", default="url", metavar="NAME", help="column of the URLs (default: url)")
    parser.add_argument("--caption-col", default="caption", metavar="NAME", help="… the captions (default: caption)")


def _run_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("run", type=Path, metavar="OUT", help="folder of the run")
    return parser


def _scoring_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("scoring")
    group.add_argument(
        "--blocklist", type=Path, metavar="FILE", help="blocked domains, one a line, subdomains included"
    )
    group.add_argument(
        "--user-dict", type=Path, action="append", default=[], metavar="FILE",
        help="words jieba does not know, one `word [frequency] [tag]` a line; repeatable",
    )  # fmt: skip
    return parser


def _device_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:N, or auto: a GPU if there is one (default: cpu)"
    )
    group.add_argument("--threads", type=int, metavar="N", help="host threads (default: all cores)")
    return parser


def _long_run_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("several GPUs")
    group.add_argument(
        "--devices",
        metavar="N,…",
        help="score on these GPUs, one process each; a process takes the next shard when it is free",
    )
    group.add_argument(
        "--workers-per-gpu", type=_positive, default=1, metavar="N",
        help="processes on each GPU, each with its own models, if one process is too slow for it (default: 1)",
    )  # fmt: skip
    group = parser.add_argument_group("watching")
    group.add_argument("--profile", action="store_true", help="say where the time of scoring went: OUT/profile/")
    group.add_argument(
        "--metrics-port", type=int, metavar="PORT", help="serve rates, queues, errors and drops to Prometheus meanwhile"
    )
    group.add_argument(
        "--metrics-address",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where (default: 127.0.0.1, this machine only)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def _picture_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("pictures")
    group.add_argument("--score-everything", action="store_true", help="no gates: all scores of all pairs")
    group.add_argument("--max-pixels", type=int, metavar="N", help="refuse larger pictures (default: Pillow's limit)")
    group.add_argument(
        "--resizer", choices=("auto", "dali", "kernel"), default="auto",
        help="kernel: bit-equal to Pillow on every device; dali: DALI's graph; auto: dali on a GPU, kernel on a CPU",
    )  # fmt: skip
    group.add_argument(
        "--memory-limit", type=read_size, metavar="SIZE", help="host memory that scoring keeps to, as 4G or 900M"
    )
    return parser


def _model_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument_group("models").add_argument(
        "--strict-engines", action="store_true",
        help="stop if an engine in use does not open; by default the one before it runs, or the model itself",
    )  # fmt: skip
    return parser


def _reference_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("other data")
    group.add_argument(
        "--against", type=Path, action="append", default=[], metavar="RUN",
        help="drop pairs whose picture is a near-duplicate of one that this curated run kept; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--exclude-similar-to", type=Path, action="append", default=[], metavar="DIR",
        help="drop pairs whose picture is near one of an evaluation set: a folder of pictures or shards, or a run; "
        "repeatable",
    )  # fmt: skip
    group.add_argument(
        "--exclude-within", type=float, metavar="DISTANCE",
        help="cosine distance that is too near to evaluation data (default: the recipe's for near-duplicates)",
    )  # fmt: skip
    return parser


def _output_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument_group("output").add_argument(
        "--output-format", choices=("webdataset", "parquet"), default="webdataset",
        help="kept pairs as .tar shards with a table of scores, or as Parquet with the pictures inside "
        "(default: webdataset)",
    )  # fmt: skip
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    from danqing.engine.run.settings import DEFAULT_MAX_PIXELS, Settings
    from danqing.engine.sources import Layout

    def keys(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(k.strip().lstrip(".") for k in text.replace(";", ",").split(",")) if text else default

    names = (getattr(options, "devices", None) or "").split(",")
    named = tuple(f"cuda:{name}" if name.isdecimal() else name for name in map(str.strip, names) if name)
    devices = (named or (options.device,)) * getattr(options, "workers_per_gpu", 1)
    return Settings(
        layout=Layout(
            keys(getattr(options, "image_key", None), Layout.image_keys),
            keys(getattr(options, "caption_key", None), Layout.caption_keys),
        ),
        blocklist=options.blocklist,
        user_dictionaries=tuple(options.user_dict),
        score_everything=getattr(options, "score_everything", False),
        max_pixels=getattr(options, "max_pixels", None) or DEFAULT_MAX_PIXELS,
        device=devices[0],
        devices=devices if len(devices) > 1 else (),
        threads=options.threads,
        memory_limit=getattr(options, "memory_limit", None),
        strict_engines=getattr(options, "strict_engines", False),
        resizer=getattr(options, "resizer", Settings.resizer),
        metrics_port=getattr(options, "metrics_port", None),
        metrics_address=getattr(options, "metrics_address", Settings.metrics_address),
    )


def _recipe(options: argparse.Namespace, default: str = "embedded") -> Recipe:
    from danqing.engine.phases import known_columns

    return load_recipe(options.recipe or default, options.set, known_columns())


def curate(options: argparse.Namespace) -> None:
    from danqing.engine.phases import curate
    from danqing.engine.report.terminal import print_funnel, print_spans

    run, funnel, spans = curate(
        options.inputs, options.output, _recipe(options), _settings(options), options.output_format,
        options.against, options.exclude_similar_to, options.exclude_within, _watcher(options),
    )  # fmt: skip
    if not spans:
        print(f"{run.folder}: already scored; nothing was scored again")
    print_spans(spans)
    _tell_profile(run.folder, spans)
    _print_refused(run)
    print_funnel(funnel)
    print(f"\n{funnel.kept} pairs in {run.folder / 'shards'}; pictures in {run.folder / 'report.html'}")


def score(options: argparse.Namespace) -> None:
    from danqing.engine.phases import score_inputs
    from danqing.engine.report.terminal import print_spans

    run, spans = score_inputs(options.inputs, options.output, _recipe(options), _settings(options), _watcher(options))
    print_spans(spans)
    _tell_profile(run.folder, spans)
    _print_refused(run)
    print(f"{run.folder}: scored{'' if spans else ' already; nothing to do'}. Next: danqing decide {run.folder}")


def _watcher(options: argparse.Namespace) -> Watcher | None:
    from danqing.profiling.watch import watched

    return watched if options.profile else None


def _tell_profile(folder: Path, spans: Spans) -> None:
    if spans.profiled:
        found = json.loads((folder / "profile" / "profile.json").read_text(encoding="utf-8"))
        print(f"{found['verdict']} More in {folder / 'profile' / 'profile.html'}")


def _print_refused(run: Run) -> None:
    for reason in run.manifest.get("refused_engines", {}).values():
        print(f"Scored without an engine that is in use: {reason}")


def decide(options: argparse.Namespace) -> None:
    from danqing.engine.phases import decide_run, known_columns
    from danqing.engine.recipe.reading import recipe_from_dict
    from danqing.engine.report.terminal import print_funnel
    from danqing.engine.run.folder import Run

    run = Run.open(options.run)
    if options.recipe:
        recipe = _recipe(options)
    else:
        recipe = recipe_from_dict(run.manifest["recipe"], "run.json", options.set, known_columns())
    print_funnel(decide_run(run, recipe, options.device, options.threads))
    print(f"Next: danqing write {run.folder}")


def write(options: argparse.Namespace) -> None:
    from danqing.engine.phases import write_run
    from danqing.engine.run.folder import Run

    kept = write_run(Run.open(options.run), options.output_format)
    print(f"{kept} pairs in {options.run / 'shards'}; pictures in {options.run / 'report.html'}")


def merge(options: argparse.Namespace) -> None:
    from danqing.engine.phases import merge_runs, write_run
    from danqing.engine.report.terminal import print_funnel

    run, funnel = merge_runs(options.runs, options.output, options.device, options.threads)
    print_funnel(funnel)
    kept = write_run(run, options.output_format)
    print(f"\n{kept} pairs in {run.folder / 'shards'}; pictures in {run.folder / 'report.html'}")


def select(options: argparse.Namespace) -> None:
    from danqing.engine.report.terminal import print_funnel, print_spans
    from danqing.engine.select.selection import select
    from danqing.engine.sources.tables import Columns

    columns = Columns(options.url_col, options.caption_col)
    chosen = select(options.inputs, options.output, _recipe(options), columns, _settings(options))
    if not chosen.spans:
        print(f"{chosen.folder}: already selected; nothing to do")
    print_spans(chosen.spans)
    print_funnel(chosen.funnel)
    print(f"\n{chosen.funnel.kept} URLs in {chosen.urls}")
    if chosen.later:
        print(f"Judged after the download: {', '.join(chosen.later)}")
    print(f"Next:\n  {chosen.download_command()}")
    print(f"  danqing curate {chosen.folder / 'images'} -o curated")


def topics(options: argparse.Namespace) -> None:
    from danqing.engine.phases import topics_of
    from danqing.engine.report.terminal import print_topics
    from danqing.engine.run.folder import Run

    run = Run.open(options.run)
    print_topics(topics_of(run, options.sample, options.smallest, options.device, options.threads))
    print(f"A map and pictures: {run.folder / 'report.html'}")


def explain(options: argparse.Namespace) -> None:
    from danqing.engine.report.explain import explain_pair
    from danqing.engine.run.folder import Run

    explain_pair(Run.open(options.run), options.key)


def diff(options: argparse.Namespace) -> int:
    from danqing.engine.report.differences import Tolerance, diff
    from danqing.engine.report.terminal import print_difference
    from danqing.engine.run.folder import Run

    ours, theirs = map(Run.open, options.runs)
    found = diff(ours, theirs, Tolerance(within=options.within, cosine=options.cosine, flips=options.flips))
    print_difference(found)
    return 1 if found.objections else 0


def profile(options: argparse.Namespace) -> None:
    from danqing.profiling.profiler import profile
    from danqing.profiling.report import print_profile

    print_profile(profile(options.inputs, options.output, _recipe(options), _settings(options)))
    print(f"Timeline: {options.output / 'profile.html'}; trace for ui.perfetto.dev: {options.output / 'trace.json'}")


def demo(options: argparse.Namespace) -> None:
    from danqing.engine.demo import run_demo

    run_demo(options.output, _settings(options))


if __name__ == "__main__":
    sys.exit(main())
