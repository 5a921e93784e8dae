"""How scoring behaves with more cores, with more shards, and while it is profiled.

    python -m danqing.profiling.bench.scaling --data 'photos/*.tar' --captions captions.parquet

*Cores*: pairs a second of `danqing score --score-everything` on one core and on two, start-up taken off. *Profiling*:
seconds on the cores of the same scoring with a watch and without, in turn, in one process; what is measured once
beforehand (limits) is not in it. *Shards*: peak memory over one shard, ten and fifty of the same size.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median

from rich.console import Console

from danqing.engine.core.columns import SHARD_COLUMNS
from danqing.engine.core.device import open_device
from danqing.engine.core.progress import Silent
from danqing.engine.recipe.plan import make_plan
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.score.loop import score
from danqing.engine.sources import find_shards
from danqing.engine.stages import CATALOGUE
from danqing.profiling.bench import in_scratch, machine
from danqing.profiling.bench.crawl import collect, repeated, write_shards
from danqing.profiling.bench.measured import FEW, Measured, Side, first_cores, measured, take_turns, turns_table
from danqing.profiling.limits import measure_limits
from danqing.profiling.watch import Watch
from danqing.trt_models.model_set import ModelSet

PICTURES, SHARDS = 1000, 8
COUNTS = (1, 10, 50)
"""Shards over which memory is measured."""
PACKAGES = ("onnxruntime", "numpy", "numba", "nvidia-nvimgcodec-cu13", "pyarrow")

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


class Bench:
    """Scores shards into fresh folders."""

    def __init__(self, scratch: Path, shards: dict[str, list[Path]]) -> None:
        self.scratch, self.shards, self._runs = scratch, shards, 0

    def score(self, cores: Sequence[int], options: Sequence[str], name: str) -> Measured:
        self._runs += 1
        output = self.scratch / f"run{self._runs:03d}"
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "danqing.engine.cli.main",
            "score",
            *self.shards[name],
            *options,
            "-o",
            output,
        ]
        took = measured(command, cores, output)
        shutil.rmtree(output)
        return took


def compare_cores(bench: Bench, pairs: int, most: int, rounds: int) -> None:
    everything = ["--score-everything"]
    counts = (most, 1)
    sides = [Side(f"{n} cores", partial(bench.score, first_cores(n), everything)) for n in counts]
    take_turns(sides, rounds, console)
    console.print(
        turns_table(f"{pairs} pairs, {most} cores beside one, medians of {rounds} rounds", sides, pairs, "pairs")
    )


def compare_profiled(shards: list[Path], scratch: Path, threads: int, rounds: int) -> None:
    """The same scoring with a watch and without, in turn, in this process, which is warm by then."""
    recipe, settings = load_recipe("embedded"), Settings(score_everything=True, threads=threads)
    plan, found = make_plan(recipe, CATALOGUE, SHARD_COLUMNS), find_shards(map(str, shards))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with open_device(threads=threads) as device:
        context = settings.context(device, ModelSet(recipe.models), plan.wanted)
        limits = measure_limits(found, settings.layout, plan, context)
        for number in range(1 + 2 * rounds):
            for watched in (False, True) if number % 2 else (True, False):
                watch = Watch(device, limits) if watched else None
                run = Run.create_or_resume(
                    scratch / f"in-process-{number}-{watched}", found, recipe, settings.layout, {}
                )
                started = time.process_time()
                with watch or nullcontext():
                    score(run, plan, context, Silent(), gated=False, spans=watch.spans if watch else None)
                if number:
                    seconds[watched].append(time.process_time() - started)
    ratios = [watched / alone for watched, alone in zip(seconds[True], seconds[False], strict=True)]
    console.print(
        f"profiled, in one warm process: {median(seconds[True]):.2f} s CPU beside {median(seconds[False]):.2f}, "
        f"medians of {len(ratios)} rounds; {median(ratios):.3f} times as much ({min(ratios):.3f} … {max(ratios):.3f})"
    )


def compare_shards(bench: Bench, cores: Sequence[int], rounds: int) -> None:
    for count in COUNTS:
        peak = median(bench.score(cores, [], f"{count} shards").peak_mib for _ in range(rounds))
        console.print(f"peak memory over {count} shards: {peak:,.0f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="INPUT", help="tars, folders, globs: pictures")
    parser.add_argument("--captions", type=Path, metavar="PARQUET", help="column 'text'; without: the demo's captions")
    parser.add_argument("--pairs", type=int, default=480)
    parser.add_argument("--shard-pairs", type=int, default=480, help="pairs of a shard where memory is measured")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    return in_scratch("scaling", partial(run, options))


def run(options: argparse.Namespace, scratch: Path) -> None:
    cores, size = first_cores(options.cores), options.shard_pairs
    console.print(f"{machine(PACKAGES)}; {options.cores} cores", style="dim", soft_wrap=True)
    pairs = repeated(collect(options.data, PICTURES, options.captions), options.captions, options.pairs)
    shards = {
        "few": write_shards(pairs[:FEW], scratch / "few", 1),
        "whole": write_shards(pairs, scratch / "whole", SHARDS),
    }
    for count in COUNTS:
        shards[f"{count} shards"] = write_shards(pairs[:size], scratch / f"{count}-shards", 1, copies=count)
    bench = Bench(scratch, shards)
    compare_cores(bench, len(pairs), options.cores, options.rounds)
    compare_profiled(shards["whole"], scratch, options.cores, options.rounds)
    compare_shards(bench, cores, options.rounds)


if __name__ == "__main__":
    sys.exit(main())
