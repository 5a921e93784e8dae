"""Programs as child processes, held to certain cores: seconds on the clock and on the cores, memory, and taking turns.

Start-up is measured, too: the same program over a few rows. Rates "without start-up" are those of the rows beyond them.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

from danqing.engine.core.errors import DanqingError


@dataclass(frozen=True)
class Measured:
    """One child process: seconds on the clock and on the cores, and its peak of resident memory.

    `others`: how many cores other processes of this machine kept busy meanwhile. `folder`: what it wrote; its log lies
    beside it.
    """

    wall: float
    cpu: float
    others: float
    peak_mib: float
    folder: Path


def first_cores(wanted: int) -> list[int]:
    """So many of the cores that this process may use."""
    cores = sorted(os.sched_getaffinity(0))[:wanted]
    if len(cores) < wanted:
        raise DanqingError(f"--cores {wanted}: only {len(cores)} here")
    return cores


def measured(
    command: Sequence[str | Path],
    cores: Sequence[int],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    place: Path | None = None,
) -> Measured:
    """Runs a command whose output goes to `folder`, and what it prints to `folder`.log.

    Args:
        environment: variables it has beside ours.
        place: where it runs, if not here.

    Raises:
        DanqingError: it ended with another status than 0; with its last words.
    """
    words, log = list(map(str, command)), folder.with_suffix(".log")
    with log.open("wb") as file:
        started, busy = time.perf_counter(), busy_seconds()
        child = subprocess.Popen(
            words, stdout=file, stderr=file, cwd=place, env={**os.environ, **(environment or {})},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        _, status, usage = os.wait4(child.pid, 0)
        wall, busy = time.perf_counter() - started, busy_seconds() - busy
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        last_words = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise DanqingError(f"{' '.join(words[:4])} … ended with {child.returncode}:\n{last_words}")
    cpu = usage.ru_utime + usage.ru_stime
    return Measured(wall, cpu, max(busy - cpu, 0.0) / wall, usage.ru_maxrss / 1024, folder)


def busy_seconds() -> float:
    """What all cores of the machine have worked so far, this process and all others together."""
    user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *interrupts))) / os.sysconf("SC_CLK_TCK")


# ── taking turns ──


FEW = 16
"""Rows of a run that measures start-up."""


@dataclass
class Side:
    """A contestant.

    Args:
        run: given "few" or "whole", runs it over `FEW` rows or over all; raises unless every row came out.
        counts_cpu: whether its work is done by its own process and children, so that their seconds can be counted.
    """

    name: str
    run: Callable[[str], Measured]
    counts_cpu: bool = True
    runs: list[tuple[Measured, Measured]] = field(default_factory=list)

    def seconds(self) -> dict[str, list[float]]:
        """What counts, by round."""
        out = {
            "end to end": [whole.wall for _, whole in self.runs],
            "without start-up": [whole.wall - few.wall for few, whole in self.runs],
        }
        if self.counts_cpu:
            out["CPU, without start-up"] = [whole.cpu - few.cpu for few, whole in self.runs]
        return out


def take_turns(sides: Sequence[Side], rounds: int, console: Console) -> None:
    """All sides in order, the order reversed every other round, after a small run that is not counted."""
    for side in sides:
        side.run("few")
    for number in range(rounds):
        for side in sides[:: 1 if number % 2 == 0 else -1]:
            few, whole = side.run("few"), side.run("whole")
            side.runs.append((few, whole))
            busy = f", {whole.cpu:.1f} s CPU, others {whole.others:.2f} cores" if side.counts_cpu else ""
            console.print(f"round {number + 1}, {side.name}: {few.wall:.1f} s, {whole.wall:.1f} s{busy}", style="dim")


def turns_table(title: str, sides: Sequence[Side], rows: int, unit: str) -> Table:
    """Medians of the rounds: seconds, rows a second, and how many times the rate of the last side, the peer.

    The ratio of "CPU" is that of the seconds on the cores, which other work on the machine disturbs least.
    """
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("", "", "s", f"{unit}/s", "it / peer", "by round"):
        table.add_column(name, justify="right" if name else "left")
    peer = sides[-1]
    for side in sides:
        for what, theirs in peer.seconds().items():
            seconds, done = side.seconds()[what], rows if what == "end to end" else rows - FEW
            cells = [side.name if what == "end to end" else "", what, f"{median(seconds):.2f}"]
            cells.append(f"{done / median(seconds):,.0f}" if not what.startswith("CPU") else "")
            if side is not peer:
                ratios = [its / own for its, own in zip(theirs, seconds, strict=True)]
                cells += [f"{median(ratios):.2f}", f"{min(ratios):.2f} … {max(ratios):.2f}"]
            table.add_row(*cells)
    return table
