"""The harness of all benchmarks: runs the sides in turn and prints a table of medians and ratios.

A side is a child process (`run_program`), or one that times only a part of itself (`time_child`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich import box
from rich.console import Console
from rich.table import Table

from danqing.engine.core.errors import DanqingError

STARTUP_ROWS, SEED = 16, 20260122
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)


@dataclass(frozen=True)
class Run:
    """Cost of one run.

    Attributes:
        wall: seconds on the clock.
        cpu: CPU seconds of the process and its children.
        peak_mib: peak memory; 0 if it was not measured.
        startup: cost of the same program over `STARTUP_ROWS` rows.
    """

    wall: float
    cpu: float
    peak_mib: float = 0.0
    startup: Run | None = None


Side = tuple[Callable[[], Run], Callable[[], Run] | None]
"""Two functions: a run over all rows, and, where the start must be subtracted, one over `STARTUP_ROWS` rows."""


def take_turns(sides: Mapping[str, Side], rounds: int) -> dict[str, list[Run]]:
    """Runs all sides in order, in reverse order every other round, after an uncounted start of each that has one."""
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for _, start in sides.values():
        if start:
            start()
    for number in range(rounds):
        for name, (run, start) in list(sides.items())[:: 1 if number % 2 == 0 else -1]:
            startup = start() if start else None
            runs[name].append(replace(run(), startup=startup))
    return runs


def print_table(
    title: str, runs: Mapping[str, Sequence[Run]], rows: int, base: str, notes: Mapping[str, str] | None = None
) -> None:
    """Prints seconds, rates and ratios: medians of the rounds, and the range of the ratios.

    Args:
        base: the side that the others are compared with: their rate ÷ its rate, and the inverse.
        notes: name of a side → text for its last column.
    """
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in ("", "time", "s", "rows/s", f"it / {base}", f"{base} / it", "range", "MiB", ""):
        table.add_column(heading, justify="left" if heading in ("", "time") else "right")
    for name, its in runs.items():
        own, other = _seconds(its), _seconds(runs[base])
        for what, seconds in own.items():
            cells = [name if what == "wall" else "", what, f"{median(seconds):.3f}"]
            counted = rows - STARTUP_ROWS if "start-up" in what else rows
            cells.append("" if "CPU" in what else f"{counted / median(seconds):,.0f}")
            ratios = [theirs / mine for theirs, mine in zip(other[what], seconds, strict=True)]
            cells += [f"{median(ratios):.2f}", f"{1 / median(ratios):.2f}", f"{min(ratios):.2f} … {max(ratios):.2f}"]
            peak = max(run.peak_mib for run in its)
            table.add_row(*cells, *([f"{peak:,.0f}" if peak else "", (notes or {}).get(name, "")] * (what == "wall")))
    console.print(table)


def _seconds(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Seconds by round, less the start-up where it was measured."""
    out = {"wall": [run.wall for run in runs]}
    if pairs := [(run, run.startup) for run in runs if run.startup]:
        out["wall, without start-up"] = [run.wall - startup.wall for run, startup in pairs]
        out["CPU, without start-up"] = [run.cpu - startup.cpu for run, startup in pairs]
    return out


def run_program(command: Sequence[str | Path], cores: Sequence[int], output: Path) -> Run:
    """Runs a command on the given cores; what it prints goes to the file OUTPUT.log.

    Raises:
        DanqingError: its exit status is not 0; with the end of what it printed.
    """
    words, log = list(map(str, command)), output.with_suffix(".log")
    environment = os.environ | dict.fromkeys(THREADS, str(len(cores)))
    with log.open("wb") as file:
        started = time.perf_counter()
        child = subprocess.Popen(
            words, stdout=file, stderr=file, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, cores)
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        printed = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise DanqingError(f"{' '.join(words[:4])} … ended with {child.returncode}:\n{printed}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def time_child(module: str, arguments: Sequence[str | Path], cores: Sequence[int], output: Path) -> Run:
    """Runs a module of this package with `--one ARGUMENTS`, which times its own work; returns what it reports."""
    run_program([sys.executable, "-m", f"danqing.profiling.bench.{module}", "--one", *arguments], cores, output)
    return Run(**json.loads(output.with_suffix(".log").read_text(encoding="utf-8").splitlines()[-1]))


def time_and_report(function: Callable[[], object], peak_mib: Callable[[], float] = lambda: 0.0) -> None:
    """Times a function and prints the cost for `time_child`; `peak_mib` is called afterwards."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    run = Run(time.perf_counter() - wall, time.process_time() - cpu, peak_mib())
    print(json.dumps(asdict(run)))


def new_parser(description: str | None, rounds: int = 0) -> argparse.ArgumentParser:
    """A parser with `--one` for `time_child`, and with `--rounds` if it has a default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds that are counted (default: {rounds})")
    return parser


def main(
    run: Callable[[argparse.Namespace, Path], object], options: argparse.Namespace, packages: Iterable[str] = ()
) -> int:
    """Prints the machine, then runs a benchmark with a temporary folder.

    Returns:
        The exit status: 2 after a DanqingError, which is printed.
    """
    console.print(machine(("numpy", "numba", "pyarrow", *packages)), style="dim", soft_wrap=True)
    with TemporaryDirectory(prefix="danqing-bench-") as scratch:
        try:
            run(options, Path(scratch))
        except DanqingError as problem:
            print(f"error: {problem}", file=sys.stderr)
            return 2
    return 0


def machine(packages: Iterable[str]) -> str:
    """The processor and the versions of the packages that are installed, on one line."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    installed = {str(package.name).lower(): package.version for package in metadata.distributions()}
    versions = [f"{name} {installed[name]}" for name in packages if name in installed]
    return ", ".join((found[1] if found else platform.machine(), f"Python {platform.python_version()}", *versions))
