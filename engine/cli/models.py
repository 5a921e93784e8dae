"""`danqing models`: from a published checkpoint to an engine in use."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from danqing.engine.cli.app import MODELS, MODELS_HELP, PARAMETERS, command, examples_text
from danqing.engine.cli.judging import recipe_with
from danqing.engine.cli.options import PositiveInt, RecipeOptions, Suites, Threads, number_from, to_local_folder
from danqing.engine.cli.output import Json, print_json
from danqing.engine.core.errors import DanqingError

if TYPE_CHECKING:
    from danqing.trt_models.card import Card
    from danqing.trt_models.engines import Engine

EXAMPLES = (
    "danqing models export chinese-clip-vit-l-14 --from FOLDER",
    "danqing models compile chinese-clip-vit-l-14-image --precision fp16",
    "danqing models verify chinese-clip-vit-l-14-image --data 'shards/*.tar'",
    "danqing models activate chinese-clip-vit-l-14-image",
    "danqing models activate chinese-clip-vit-l-14-image --rollback",
)

models = App("models", help=MODELS_HELP, help_epilogue=examples_text(EXAMPLES), default_parameter=PARAMETERS)

Name = Annotated[str, Parameter(help="A model card's name, or the path of one of your own (.yaml).")]
EngineName = Annotated[str, Parameter(help="A part of the engine's name; by default the newest engine.")]
Data = Annotated[list[str], Parameter(consume_multiple=(1, None), metavar="INPUT", help="Shards of real pairs.")]
Pairs = Annotated[PositiveInt, Parameter(metavar="N", help="Number of pairs to read.")]
CheckpointFolder = Annotated[
    Path | None, Parameter(name="--from", converter=to_local_folder, n_tokens=1, metavar="FOLDER")
]


@dataclass(frozen=True)
class ListedEngine:
    """An engine as `models list` shows it."""

    name: str
    in_use: bool = False
    readable: bool = True

    def __str__(self) -> str:
        remarks = ["in use"] * self.in_use + ["unreadable"] * (not self.readable)
        return f"{self.name} ({', '.join(remarks)})" if remarks else self.name


@command("danqing models list", "danqing models list --json", group=MODELS, parent=models, name="list")
def list_models(*, json: Json = False) -> None:
    """Show the models and the engines compiled from them."""
    from danqing.engine.report.terminal import print_models
    from danqing.trt_models.card import card_names, load_card
    from danqing.trt_models.store import is_stored

    rows: list[tuple[Card, str, list[ListedEngine]]] = []
    for card in map(load_card, card_names()):
        if not is_stored(card):
            rows.append((card, "when first used" if card.build else "", []))
            continue
        try:
            rows.append((card, "yes", [] if card.lexicon else _listed_engines(card)))
        except DanqingError as problem:
            rows.append((card, "unreadable", []))
            print(f"danqing: {problem}", file=sys.stderr)
    if not json:
        print_models((card, here, list(map(str, engines))) for card, here, engines in rows)
        return
    listed = [
        {"name": card.name, "task": card.task, "here": here == "yes", "engines": list(map(asdict, engines))}
        for card, here, engines in rows
    ]
    print_json({"models": listed})


def _listed_engines(card: Card) -> list[ListedEngine]:
    """Engines of a model, also those that cannot be read; what is wrong with these goes to stderr."""
    from danqing.trt_models.engines import Engines, UnreadableEngine

    engines = Engines(card)
    entries, in_use, listed = {entry.name: entry for entry in engines.entries()}, set(), []
    try:
        first = [entry for target in engines.targets() for entry in engines.active(target)[:1]]
        in_use = {entry.name for entry in first}
        entries = {entry.name: entry for entry in first} | entries
    except DanqingError as problem:
        listed = [ListedEngine("active.json", readable=False)]
        print(f"danqing: {problem}", file=sys.stderr)
    for name, entry in sorted(entries.items()):
        readable = not isinstance(entry, UnreadableEngine)
        listed.append(ListedEngine(name, name in in_use, readable))
        if isinstance(entry, UnreadableEngine):
            print(f"danqing: {entry.reason}", file=sys.stderr)
    return listed


@command(
    "danqing models export chinese-clip-vit-l-14 --from FOLDER      both towers",
    "danqing models export my-card.yaml --from checkpoint/",
    "danqing models export trained/model             what `danqing train` has written",
    group=MODELS,
    parent=models,
)
def export(
    name: Annotated[
        str,
        Parameter(
            help="A card, the common beginning of the names of both towers' cards, or the folder of a checkpoint and "
            "its cards."
        ),
    ],
    /,
    *,
    source: Annotated[
        CheckpointFolder,
        Parameter(help="config.json, weights and vocabulary, as published (default: the folder that is named)."),
    ] = None,
) -> None:
    """Export a published checkpoint to ONNX, so that recipes can name it."""
    from danqing.trt_models.card import card_names, load_card
    from danqing.trt_models.export.from_checkpoint import export_all

    towers = [tower for end in ("image", "text") if (tower := f"{name}-{end}") in card_names()]
    if not towers and name not in card_names() and Path(name).is_dir():
        source = source or Path(name)
        towers = sorted(str(path) for path in Path(name).glob("*.yaml"))
        if not towers:
            raise DanqingError(f"{name}: no model cards (.yaml) here; name a card, and the checkpoint with --from")
    if source is None:
        raise DanqingError("--from is missing: give the folder of the checkpoint, as published")
    cards = [load_card(tower) for tower in towers or [name]]
    for card, folder in zip(cards, export_all(cards, source), strict=True):
        print(f"{card.name}: {folder}")


@command(
    "danqing models compile chinese-clip-vit-l-14-image --target sm_90",
    "danqing models compile open-nsfw --precision int8 --data 'demo/crawl/*.tar'",
    group=MODELS,
    parent=models,
    name="compile",
)
def compile_model(
    name: Name,
    /,
    *,
    precision: Annotated[str, Parameter(metavar="NAME", help="fp32, fp16, bf16, int8 or fp8.")] = "fp16",
    target: Annotated[
        str | None,
        Parameter(
            name=["--target", "--gpu"],
            metavar="ARCH",
            help="cpu, sm_80, sm_90, … (default: this machine's GPU, else cpu).",
        ),
    ] = None,
    batch: Annotated[str, Parameter(metavar="MIN,USUAL,MAX", help="Rows at a time.")] = "1,8,64",
    level: Annotated[Literal[0, 1, 2, 3, 4, 5] | None, Parameter(help="TensorRT's optimisation level.")] = None,
    runtime: Annotated[
        str | None,
        Parameter(
            metavar="NAME",
            help="tensorrt, tensorrt-rtx, onnxruntime or torch (default: the first of them that is installed).",
        ),
    ] = None,
    data: Data | None = None,
    pairs: Pairs = 128,
    threads: Threads = None,
    recipe: RecipeOptions = RecipeOptions(),
) -> None:
    """Compile an engine of a model."""
    from danqing.engine.report.terminal import print_fusion
    from danqing.engine.run.settings import Settings
    from danqing.profiling.parity import read_samples
    from danqing.trt_models.compile.compilers import compile_engine, this_gpu

    card = _network_card(name)
    try:
        min_rows, usual_rows, max_rows = map(int, batch.split(","))
    except ValueError:
        raise DanqingError(f"--batch {batch}: write it as MIN,USUAL,MAX rows, for example 1,8,64") from None
    given = read_samples(card, data, recipe_with(name, recipe), Settings(threads=threads), pairs) if data else []
    engine = compile_engine(
        card, precision, target or this_gpu() or "cpu", (min_rows, usual_rows, max_rows), level, runtime, given
    )
    if "fused" in engine.options:
        print_fusion(engine.options)
    print(f"{engine.name}: compiled\nNext: danqing models verify {quote(name)} {engine.name} --data INPUT")


@command(
    "danqing models verify chinese-clip-vit-l-14-image --data 'shards/*.tar'",
    "danqing models verify open-nsfw int8 --data shards/ --min-cosine 0.99",
    "danqing models verify siglip2-b-16-256-image fp8 --data shards/ --suite ELEVATER --max-drop 0.005",
    group=MODELS,
    parent=models,
)
def verify(
    name: Name,
    engine: EngineName = "newest",
    /,
    *,
    data: Data,
    pairs: Pairs = 512,
    min_cosine: Annotated[
        float,
        Parameter(
            metavar="X",
            validator=number_from(-1, 1),
            help="Smallest mean cosine of embeddings; 1 - |difference| of a classifier's probabilities or of the "
            "log-likelihoods of a language model.",
        ),
    ] = 0.999,
    max_flips: Annotated[
        float, Parameter(metavar="X", validator=number_from(0, 1), help="Largest share of verdicts that may change.")
    ] = 0.001,
    checkpoint: Annotated[
        CheckpointFolder,
        Parameter(help="The checkpoint it was exported from, to compare the speed of torch.compile."),
    ] = None,
    suite: Annotated[
        Suites,
        Parameter(help="Also evaluate both towers with and without the engine, as `danqing evaluate`; repeatable."),
    ] = (),
    max_drop: Annotated[
        float, Parameter(metavar="X", validator=number_from(0, 1), help="Largest fall of a metric of --suite.")
    ] = 0.01,
    threads: Threads = None,
    recipe: RecipeOptions = RecipeOptions(),
) -> int:
    """Measure on real pairs how closely an engine agrees with its model.

    The exit status is 1 if parity fails, or a metric of the suite falls by more than --max-drop.
    """
    from danqing.engine.evaluate.models import compare_engine
    from danqing.engine.evaluate.results import compare
    from danqing.engine.report.evaluations import print_evaluations
    from danqing.engine.report.terminal import ProgressBar, print_parity
    from danqing.engine.run.settings import Settings
    from danqing.profiling.parity import role_and_recipe, verify
    from danqing.trt_models.engines import Engines

    card, found = _engine(name, engine)
    wanted = {"cosine_mean": min_cosine, "flips": max_flips}
    settings, chosen, drop = Settings(threads=threads), recipe_with(name, recipe), None
    if suite:
        role, _ = role_and_recipe(card, chosen)
        evaluations = compare_engine(role, chosen, found, suite, settings, ProgressBar)
        compared = compare(evaluations)
        print_evaluations(evaluations, compared)
        drop, wanted["drop"] = compared.largest_drop[0], max_drop
    found = verify(card, found, data, chosen, settings, pairs, wanted, checkpoint, drop)
    print_parity(found)
    if found.parity is None or not found.parity.passed:
        if [entry.name for entry in Engines(card).active(found.target)[:1]] == [found.name]:
            back = f"danqing models activate {name} --rollback --target {found.target}"
            print(f"{found.name} is still in use on {found.target}; to take it out of use: {back}")
        return 1
    print(f"Next: danqing models activate {quote(name)} {found.name}")
    return 0


@command(
    "danqing models activate open-nsfw",
    "danqing models activate open-nsfw --rollback --target sm_90",
    group=MODELS,
    parent=models,
)
def activate(
    name: Name,
    engine: EngineName = "newest",
    /,
    *,
    rollback: Annotated[bool, Parameter(help="Return to the engine that was in use before.")] = False,
    target: Annotated[
        str | None,
        Parameter(metavar="ARCH", help="Target of the rollback (default: this machine's GPU, else cpu)."),
    ] = None,
) -> None:
    """Take a verified engine into use, or the present one out of use."""
    from danqing.trt_models.compile.compilers import this_gpu
    from danqing.trt_models.engines import Engines, UnreadableEngine

    if rollback:
        before = Engines(_network_card(name)).rollback(target or this_gpu() or "cpu")
        print(f"{name}: {before.name if before else 'the model itself'} is in use again")
        if isinstance(before, UnreadableEngine):
            print(f"danqing: it does not open: {before.reason}", file=sys.stderr)
        return
    card, found = _engine(name, engine)
    Engines(card).activate(found)
    print(f"{found.name}: in use from the next shard that is read on")


def _engine(name: str, engine: str) -> tuple[Card, Engine]:
    from danqing.trt_models.engines import Engines

    card = _network_card(name)
    return card, Engines(card).named(engine)


def _network_card(name: str) -> Card:
    from danqing.trt_models.card import load_card

    card = load_card(name)
    if card.lexicon:
        raise DanqingError(f"{card.name} is a word list; there is nothing to compile")
    return card
