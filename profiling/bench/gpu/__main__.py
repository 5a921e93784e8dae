"""Measures the engine on a GPU, step by step, within a time limit; prints one table and writes a JSON file per step.

    sh profiling/bench/gpu.sh --minutes 10                          # the tests that need a GPU, then all steps
    python -m danqing.profiling.bench.gpu --device cuda networks pictures   # these steps
    python -m danqing.profiling.bench.gpu --device cpu --minutes 2   # tries the steps without a GPU, at small sizes

Steps: kernels (parity with the CPU, captions a second), neighbours (near-duplicates beside FAISS), pictures (decode,
resize), networks (an image tower of random weights in every runtime that is installed), end-to-end (shards to scores),
tables (SELECT, captions of a cuDF column). If a step fails or runs out of time, the others still run; the exit
status is then 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from danqing.profiling.bench import in_scratch, machine
from danqing.profiling.bench.gpu.figures import Figure, Result, to_table
from danqing.profiling.bench.gpu.material import SMALL, Job, export_tower, link_cache

PACKAGES = ("onnxruntime-gpu", "onnxruntime", "tensorrt-cu13", "torch", "nvidia-nvimgcodec-cu13", "nvidia-dali-cuda130",
            "cupy-cuda13x", "numba-cuda", "cudf-cu13", "faiss-gpu", "faiss-gpu-cuvs")  # fmt: skip
TOWER = "tower"


class Step(NamedTuple):
    """A step: its module in this package, and its time limit on a GPU."""

    module: str
    limit_seconds: float

    @property
    def measure(self) -> Callable[[Job], Iterator[Figure]]:
        return import_module(f"danqing.profiling.bench.gpu.{self.module}").measure


STEPS = {
    "kernels": Step("kernels", 100),
    "neighbours": Step("neighbours", 60),
    "pictures": Step("pictures", 60),
    "networks": Step("networks", 180),
    "end-to-end": Step("end_to_end", 180),
    "tables": Step("tables", 60),
}

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def main() -> int:
    options = _options()
    if options.one:
        return _run_one(options)
    return in_scratch("gpu", partial(_run, options)) or (1 if options.failed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m danqing.profiling.bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"default: all; of {', '.join(STEPS)}")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--minutes", type=float, default=10, help="time limit of all steps together (default: 10)")
    parser.add_argument("--tower", help="default: chinese-clip-vit-l-14; on a CPU a tower of two layers")
    parser.add_argument("--captions", type=Path, metavar="PARQUET", help="column 'text' (default: the demo's captions)")
    parser.add_argument("--rows", type=int, help="captions and vectors (default: 1,000,000; on a CPU 10,000)")
    parser.add_argument("--pairs", type=int, help="pairs end to end (default: 8,000; on a CPU 32)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep STEP.json of every step there")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep tower and engines there for the next call")
    parser.add_argument("--one", nargs=2, metavar=("STEP", "SCRATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [step for step in options.steps if step not in STEPS]:
        parser.error(f"no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    on_cpu = options.device == "cpu"
    options.tower = options.tower or (SMALL if on_cpu else "chinese-clip-vit-l-14")
    options.rows = options.rows or (10_000 if on_cpu else 1_000_000)
    options.pairs = options.pairs or (32 if on_cpu else 8_000)
    options.failed = False
    return options


def _job(options: argparse.Namespace, scratch: Path) -> Job:
    return Job(
        options.device, scratch, options.work or scratch, options.tower, options.captions, options.rows, options.pairs
    )


def _run(options: argparse.Namespace, scratch: Path) -> None:
    """Runs every step in a process of its own, and the tower's export at the same time."""
    output, deadline = options.output or scratch / "results", time.monotonic() + 60 * options.minutes
    job = _job(options, scratch)
    for folder in (output, job.work):
        folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"DANQING_CACHE": str(link_cache(job.work))}
    (job.work / "tower.failed").unlink(missing_ok=True)
    with (job.work / "tower.log").open("wb") as log:
        tower = subprocess.Popen(_command(TOWER, scratch), stdout=log, stderr=log, env=environment)
        results = []
        for name in options.steps or STEPS:
            left = deadline - time.monotonic()
            if left > 0:
                result = _run_step(name, scratch, min(STEPS[name].limit_seconds, left), environment)
            else:
                result = Result(name, 0.0, error="no time left")
            result.write(output)
            results.append(result)
            console.print(f"{name}: {result.error or 'done'} in {result.seconds:.0f} s", style="dim")
        with suppress(ProcessLookupError):
            tower.kill()
        tower.wait()
    console.print(to_table(results, bars=options.device != "cpu"))
    console.print(machine(PACKAGES))
    options.failed = any(result.error for result in results)


def _command(step: str, scratch: Path) -> list[str]:
    return [sys.executable, "-m", "danqing.profiling.bench.gpu", *sys.argv[1:], "--one", step, str(scratch)]


def _run_step(name: str, scratch: Path, limit: float, environment: dict[str, str]) -> Result:
    started, log = time.monotonic(), scratch / f"{name}.log"
    try:
        with log.open("wb") as file:
            status = subprocess.run(
                _command(name, scratch), stdout=file, stderr=file, timeout=limit, env=environment
            ).returncode
    except subprocess.TimeoutExpired:
        status = None
    seconds = time.monotonic() - started
    found = Result.read(scratch, name)
    if status == 0:
        return found
    if status is None:
        return replace(found, seconds=seconds, error=f"stopped after {limit:.0f} s, its limit")
    last_output = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-600:]
    return replace(found, seconds=seconds, error=f"ended with {status}: {last_output}")


def _run_one(options: argparse.Namespace) -> int:
    """Runs one step, or the tower's export, in this process."""
    step, scratch = options.one[0], Path(options.one[1])
    job, started = _job(options, scratch), time.monotonic()
    if step != TOWER:
        result = Result(step, 0.0)
        for figure in STEPS[step].measure(job):  # written one by one, so that a later failure loses none
            seconds = round(time.monotonic() - started, 1)
            result = Result(step, seconds, (*result.figures, figure))
            result.write(scratch)
        return 0
    try:
        export_tower(job)
    except BaseException:
        (job.work / "tower.failed").touch()
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
