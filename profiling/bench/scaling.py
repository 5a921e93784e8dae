"""How scoring behaves with more cores, with more shards, and while it is profiled.

    python -m profiling.bench.scaling --data 'photos/*.tar' --captions captions.parquet

*Cores*: pairs a second of `danqing score --score-everything` on one core and on two, start-up taken off. *Shards*: peak
memory over one shard and over fifty times as many of the same size. *Profiling*: the same command with `--profile` and
without, in turn; what a profile measures beforehand (limits) is taken off with the start-up, as both do it over few
pairs, too.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from rich.console import Console

from engine.errors import DanqingError
from profiling.bench import machine
from profiling.bench.crawl import collect, repeated, write_shards
from profiling.bench.measured import FEW, Measured, Side, first_cores, measured, take_turns, turns_table

PICTURES, SHARDS, MANY = 1000, 8, 50
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
            "engine.cli",
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


def compare_profiled(bench: Bench, pairs: int, cores: Sequence[int], rounds: int) -> None:
    sides = [
        Side("profiled", partial(bench.score, cores, ["--score-everything", "--profile"])),
        Side("not profiled", partial(bench.score, cores, ["--score-everything"])),
    ]
    take_turns(sides, rounds, console)
    console.print(turns_table(f"{pairs} pairs, medians of {rounds} rounds", sides, pairs, "pairs"))


def compare_shards(bench: Bench, cores: Sequence[int], rounds: int) -> None:
    peaks = {
        name: median(bench.score(cores, ["--score-everything"], name).peak_mib for _ in range(rounds))
        for name in ("one", "many")
    }
    console.print(
        f"peak memory: {peaks['one']:,.0f} MiB over one shard, {peaks['many']:,.0f} over {MANY}, "
        f"{peaks['many'] / peaks['one']:.2f} times as much"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="INPUT", help="tars, folders, globs: pictures")
    parser.add_argument("--captions", type=Path, metavar="PARQUET", help="column 'text'; without: the demo's captions")
    parser.add_argument("--pairs", type=int, default=480)
    parser.add_argument("--shard-pairs", type=int, default=60, help="pairs of a shard where memory is measured")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="danqing-bench-"))
    try:
        cores, size = first_cores(options.cores), options.shard_pairs
        console.print(f"{machine(PACKAGES)}; {options.cores} cores", style="dim", soft_wrap=True)
        pairs = repeated(collect(options.data, PICTURES, options.captions), options.captions, options.pairs)
        shards = {
            "few": write_shards(pairs[:FEW], scratch / "few", 1),
            "whole": write_shards(pairs, scratch / "whole", SHARDS),
            "one": write_shards(pairs[:size], scratch / "one", 1),
            "many": write_shards(pairs[:size], scratch / "many", 1, copies=MANY),
        }
        bench = Bench(scratch, shards)
        compare_cores(bench, len(pairs), options.cores, options.rounds)
        compare_profiled(bench, len(pairs), cores, options.rounds)
        compare_shards(bench, cores, options.rounds)
    except DanqingError as problem:
        print(f"scaling: {problem}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
