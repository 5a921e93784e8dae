"""`danqing models`: from a published checkpoint to an engine in use."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danqing.engine.core.errors import DanqingError

if TYPE_CHECKING:
    from danqing.engine.recipe.reading import Recipe
    from danqing.engine.run.settings import Settings
    from danqing.trt_models.card import Card
    from danqing.trt_models.engines import Engine

DESCRIPTION = """\
The models that score, and their compiled engines.

  danqing models export chinese-clip-vit-l-14 --from FOLDER     a published checkpoint, ready for recipes
  danqing models compile chinese-clip-vit-l-14-image --precision fp16 --target sm_90
  danqing models verify chinese-clip-vit-l-14-image --data 'shards/*.tar' --recipe danqing
  danqing models activate chinese-clip-vit-l-14-image           from the next shard on, wherever a run is under way
  danqing models activate chinese-clip-vit-l-14-image --rollback
"""


def add_models_commands(commands: Any, recipe: argparse.ArgumentParser) -> None:
    """Adds `models` and its subcommands to the command line."""
    models = commands.add_parser(
        "models", help="export, compile, verify and activate models", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    under = models.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Any, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser = under.add_parser(
            function.__name__.strip("_"), help=text, description=f"{text}.", parents=list(parents)
        )
        parser.set_defaults(function=function)
        return parser

    def named(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser.add_argument("name", metavar="NAME", help="a model card's name, or the path of one of your own (.yaml)")
        return parser

    def data(parser: argparse.ArgumentParser, pairs: int, required: bool) -> None:
        parser.add_argument(
            "--data", nargs="+", required=required, default=[], metavar="INPUT", help="shards of real pairs"
        )
        parser.add_argument(
            "--pairs", type=int, default=pairs, metavar="N", help=f"how many of them (default: {pairs})"
        )
        parser.add_argument("--threads", type=int, metavar="N", help="host threads (default: all cores)")

    command(list_, "show the models there are, and the engines compiled of them")
    parser = command(export, "make a model of a published checkpoint, so that recipes can name it")
    parser.add_argument("name", metavar="NAME", help="a card, or what the cards of both towers begin with")
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="FOLDER",
                        help="config.json, weights and vocabulary, as published")  # fmt: skip
    parser = named(command(compile, "compile an engine of a model", recipe))
    parser.add_argument("--precision", default="fp16", help="fp32, fp16, bf16, int8 or fp8 (default: fp16)")
    parser.add_argument(
        "--target", "--gpu", metavar="ARCH", help="cpu, sm_80, sm_90 … (default: this machine's GPU, else cpu)"
    )
    parser.add_argument("--batch", default="1,8,64", metavar="MIN,USUAL,MAX", help="rows at a time (default: 1,8,64)")
    parser.add_argument("--level", type=int, choices=range(6), help="TensorRT's optimisation level")
    parser.add_argument(
        "--runtime", metavar="NAME",
        help="tensorrt, tensorrt-rtx, onnxruntime or torch (default: the first of them that is installed)",
    )  # fmt: skip
    data(parser, 128, required=False)
    parser = named(command(verify, "measure how near an engine comes to its model, on real pairs", recipe))
    parser.epilog = "Exit status 1 if parity fails."
    parser.add_argument("engine", nargs="?", default="newest", help="a part of its name (default: the newest)")
    data(parser, 512, required=True)
    parser.add_argument(
        "--min-cosine", type=float, default=0.999, metavar="X",
        help="least mean cosine of embeddings, or 1 - |difference| of a classifier's probability (default: 0.999)",
    )  # fmt: skip
    parser.add_argument(
        "--max-flips", type=float, default=0.001, help="most verdicts changed, a share (default: 0.001)"
    )
    parser.add_argument("--from", dest="checkpoint", type=Path, metavar="FOLDER",
                        help="the checkpoint it was exported from, to time torch.compile beside")  # fmt: skip
    parser = named(command(activate, "take a verified engine into use, or the present one out of it"))
    parser.add_argument("engine", nargs="?", default="newest", help="a part of its name (default: the newest)")
    parser.add_argument("--rollback", action="store_true", help="back to the engine before")
    parser.add_argument("--target", metavar="ARCH", help="of the rollback (default: this machine's GPU, else cpu)")


def list_(options: argparse.Namespace) -> None:
    from danqing.engine.report.terminal import print_models
    from danqing.trt_models.card import card_names, load_card
    from danqing.trt_models.store import is_stored

    rows: list[tuple[Card, str, list[str]]] = []
    for card in map(load_card, card_names()):
        if not is_stored(card):
            rows.append((card, "when first used" if card.build else "", []))
            continue
        try:
            rows.append((card, "yes", [] if card.lexicon else _engine_lines(card)))
        except DanqingError as problem:
            rows.append((card, "unreadable", []))
            print(f"danqing: {problem}", file=sys.stderr)
    print_models(rows)


def _engine_lines(card: Card) -> list[str]:
    """Names of a model's engines, with remarks. Engines that cannot be read are listed, too."""
    from danqing.trt_models.engines import Engines, UnreadableEngine

    engines = Engines(card)
    entries, in_use, lines = {entry.name: entry for entry in engines.entries()}, set(), []
    try:
        first = [entry for target in engines.targets() for entry in engines.active(target)[:1]]
        in_use = {entry.name for entry in first}
        entries = {entry.name: entry for entry in first} | entries
    except DanqingError as problem:
        lines = ["active.json (unreadable)"]
        print(f"danqing: {problem}", file=sys.stderr)
    for name, entry in sorted(entries.items()):
        remarks = ["in use"] * (name in in_use)
        if isinstance(entry, UnreadableEngine):
            remarks.append("unreadable")
            print(f"danqing: {entry.reason}", file=sys.stderr)
        lines.append(f"{name} ({', '.join(remarks)})" if remarks else name)
    return lines


def export(options: argparse.Namespace) -> None:
    from danqing.trt_models.card import card_names, load_card
    from danqing.trt_models.export.from_checkpoint import export

    towers = [name for tower in ("image", "text") if (name := f"{options.name}-{tower}") in card_names()]
    for name in towers or [options.name]:
        folder = export(load_card(name), options.source)
        print(f"{name}: {folder}")


def compile(options: argparse.Namespace) -> None:
    from danqing.engine.report.terminal import print_fusion
    from danqing.profiling.parity import samples
    from danqing.trt_models.compile.compilers import compile_engine, this_gpu

    card = _network_card(options)
    target = options.target or this_gpu() or "cpu"
    try:
        fewest, usual, most = map(int, options.batch.split(","))
    except ValueError:
        raise DanqingError(f"--batch {options.batch}: write it as fewest,usual,most rows, for example 1,8,64") from None
    given = samples(card, options.data, _recipe(options), _settings(options), options.pairs) if options.data else []
    engine = compile_engine(
        card, options.precision, target, (fewest, usual, most), options.level, options.runtime, given
    )
    if "fused" in engine.options:
        print_fusion(engine.options)
    print(f"{engine.name}: compiled\nNext: danqing models verify {options.name} {engine.name} --data INPUT")


def verify(options: argparse.Namespace) -> int:
    from danqing.engine.report.terminal import print_parity
    from danqing.profiling.parity import verify
    from danqing.trt_models.engines import Engines

    card, engine = _engine(options)
    wanted = {"cosine_mean": options.min_cosine, "flips": options.max_flips}
    engine = verify(
        card, engine, options.data, _recipe(options), _settings(options), options.pairs, wanted, options.checkpoint
    )
    print_parity(engine)
    if engine.parity is None or not engine.parity.passed:
        if [entry.name for entry in Engines(card).active(engine.target)[:1]] == [engine.name]:
            back = f"danqing models activate {options.name} --rollback --target {engine.target}"
            print(f"{engine.name} is still in use on {engine.target}; to take it out of use: {back}")
        return 1
    print(f"Next: danqing models activate {options.name} {engine.name}")
    return 0


def activate(options: argparse.Namespace) -> None:
    from danqing.trt_models.compile.compilers import this_gpu
    from danqing.trt_models.engines import Engines, UnreadableEngine

    if options.rollback:
        before = Engines(_network_card(options)).rollback(options.target or this_gpu() or "cpu")
        print(f"{options.name}: {before.name if before else 'the model itself'} is in use again")
        if isinstance(before, UnreadableEngine):
            print(f"danqing: it does not open: {before.reason}", file=sys.stderr)
        return
    card, engine = _engine(options)
    Engines(card).activate(engine)
    print(f"{engine.name}: in use from the next shard on")


def _engine(options: argparse.Namespace) -> tuple[Card, Engine]:
    from danqing.trt_models.engines import Engines

    card = _network_card(options)
    return card, Engines(card).named(options.engine)


def _network_card(options: argparse.Namespace) -> Card:
    from danqing.trt_models.card import load_card

    card = load_card(options.name)
    if card.lexicon:
        raise DanqingError(f"{card.name} is a word list; there is nothing to compile")
    return card


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe given, else the built-in one that uses the model."""
    from danqing.engine.phases import known_columns
    from danqing.engine.recipe.reading import builtin_names, load_recipe
    from danqing.engine.stages import model_roles

    if options.recipe:
        return load_recipe(options.recipe, options.set, known_columns(), model_roles())
    for name in reversed(builtin_names()):
        recipe = load_recipe(name, options.set, known_columns(), model_roles())
        if options.name in recipe.models.values():
            return recipe
    raise DanqingError(f"no built-in recipe uses {options.name}; give one that does with --recipe FILE")


def _settings(options: argparse.Namespace) -> Settings:
    from danqing.engine.run.settings import Settings

    return Settings(threads=options.threads)
