"""The text stage beside what people use: same real captions, one core each, in turn.

    python -m danqing.profiling.bench.text --captions captions.parquet
    python -m danqing.profiling.bench.text --setup-peers DIR                  # once: Data-Juicer in its own environment
    python -m danqing.profiling.bench.text --captions captions.parquet --peers DIR

Every contestant is a process of its own that is held to one core, opens what it needs, cuts a thousand other
captions (first use, compilation; timed apart), and then waits for its turns. jieba-rs and pyahocorasick come with
`pip install rjieba pyahocorasick`.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from danqing.engine.core.errors import DanqingError
from danqing.profiling.bench import in_scratch, juicer, machine
from danqing.profiling.bench.measured import Measured
from danqing.profiling.bench.text_peers import (
    COLUMNS,
    Columns,
    open_jieba,
    open_libraries,
    open_plain,
    open_rjieba,
    posseg_cutter,
    rjieba_cutter,
)

SEED, WARM, BATCH = 20260122, 1000, 4096
TINY, MANY = 16, 40_000
PACKAGES = ("numpy", "numba", "jieba", "rjieba", "fasttext-predict", "opencc", "pyahocorasick")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)

process = ExitStack()

Work = Callable[[list[str]], Any]
"""Captions → tokens of each, or columns."""


# ── our side: all that knows the stage ──


def our_device(threads: int) -> Any:
    """Open for as long as the process lives."""
    from danqing.engine.core.device import open_device

    return process.enter_context(open_device(threads=threads))


def our_segmenter(hmm: bool) -> Work:
    from danqing.engine.stages.dictionary import open_dictionary
    from danqing.kernels.text.captions import tokens
    from danqing.kernels.text.strings import Strings

    device, words = our_device(1), open_dictionary()

    def cut(captions: list[str]) -> list[list[str]]:
        parts = (Strings.of(captions[start : start + BATCH]) for start in range(0, len(captions), BATCH))
        return [line for part in parts for line in tokens(device, part, words, hmm)]

    return cut


def our_cuts(hmm: bool) -> Work:
    """The same, but what the stage does itself: the cuts stay marks in an array, no string is made."""
    from danqing.engine.stages.dictionary import open_dictionary
    from danqing.kernels.text.captions import scratch, segment_rows
    from danqing.kernels.text.strings import Strings

    device, words = our_device(1), open_dictionary()

    def cut(captions: list[str]) -> None:
        for start in range(0, len(captions), BATCH):
            part = Strings.of(captions[start : start + BATCH])
            segment_rows.launch(
                device, part.rows, part, words, hmm, scratch(device, part), np.empty(part.rows, np.int32)
            )

    return cut


def our_stage(threads: int) -> Work:
    from danqing.engine.core.batch import Batch
    from danqing.engine.recipe.reading import load_recipe
    from danqing.engine.stages.base import Context
    from danqing.engine.stages.text import Caption, Refine
    from danqing.trt_models.model_set import ModelSet

    wanted = frozenset(name for stage in (Caption, Refine) for name, column in stage.produces.items() if column.type)
    context = Context(our_device(threads), ModelSet(load_recipe("embedded").models), wanted)
    stages = [Caption(context), Refine(context)]

    def run(captions: list[str]) -> Columns:
        batches = []
        for start in range(0, len(captions), BATCH):
            part = captions[start : start + BATCH]
            batches.append(Batch({"row": np.arange(start, start + len(part)), "caption": part}))
            for stage in stages:
                stage(batches[-1])
        whole = Batch.concat(batches)
        return {name: whole[name] for name in COLUMNS}

    return run


# ── contestants ──

MARKS = "ours, no strings made"
SEGMENTERS: dict[str, dict[str, Callable[[], Work]]] = {
    f"HMM {state}": {
        "ours": partial(our_segmenter, hmm),
        MARKS: partial(our_cuts, hmm),
        "rjieba.cut": partial(open_rjieba, hmm),
        "jieba.lcut": partial(open_jieba, hmm),
    }
    for state, hmm in (("off", False), ("on", True))
}
STAGES: dict[str, Callable[[], Work]] = {
    "ours": partial(our_stage, 1),
    "rjieba + fastText + OpenCC + pyahocorasick": partial(open_libraries, rjieba_cutter, sparing=False),
    "the same, fastText only in doubt, as ours": partial(open_libraries, rjieba_cutter, sparing=True),
    "jieba.posseg + the same rest": partial(open_libraries, posseg_cutter, sparing=False),
    "the plain script's half (plain_text.py)": open_plain,
}
JUICER = "Data-Juicer's operators"
TWO = "ours, 2 cores"


@dataclass
class Turns:
    """What a contestant took: opening and first use, then seconds and CPU seconds by round."""

    opening: float
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def serve(pipe: Connection, open_work: Callable[[], Work], cores: set[int], captions: list[str], warm: int) -> None:
    """The child: opens, warms up over the first captions, then runs over the others whenever told to."""
    os.sched_setaffinity(0, cores)
    try:
        started = time.perf_counter()
        work = open_work()
        work(captions[:warm])
        pipe.send(time.perf_counter() - started)
        result = None
        while (order := pipe.recv()) != "end":
            if order == "result":
                pipe.send(result)
                continue
            result = None
            wall, cpu = time.perf_counter(), time.process_time()
            result = work(captions[warm:])
            pipe.send((time.perf_counter() - wall, time.process_time() - cpu))
    except ImportError as problem:
        pipe.send(DanqingError(f"{problem}: pip install rjieba pyahocorasick"))
    except Exception as problem:
        pipe.send(DanqingError(f"{type(problem).__name__}: {problem}"))


class Contestant:
    """The parent's end of a child."""

    def __init__(self, open_work: Callable[[], Work], cores: Sequence[int], captions: list[str]) -> None:
        self._pipe, theirs = get_context("spawn").Pipe()
        with threads(len(cores)):
            arguments = (theirs, open_work, set(cores), captions, WARM)
            self._child = get_context("spawn").Process(target=serve, args=arguments, daemon=True)
            self._child.start()
        theirs.close()
        self.turns = Turns(self._answer())

    def turn(self) -> None:
        self._pipe.send("run")
        wall, cpu = self._answer()
        self.turns.wall.append(wall)
        self.turns.cpu.append(cpu)

    def result(self) -> Any:
        self._pipe.send("result")
        return self._answer()

    def end(self) -> None:
        self._pipe.send("end")
        self._child.join()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise DanqingError("a contestant's process died") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Children started meanwhile run their libraries with so many threads."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(THREADS, str(count)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Outside:
    """Data-Juicer's program in a contestant's place: on one core, without the time of a process over 16 captions.

    Its start-up is long and uneven, so few captions are repeated until there are 40,000.
    """

    def __init__(self, peers: Path, scratch: Path, captions: list[str], core: int) -> None:
        self.program = juicer.Juicer(peers, scratch, [core])
        repeated = captions * -(-MANY // len(captions))
        for name, lines in (("tiny", captions[:TINY]), ("whole", repeated)):
            self.program.prepare(name, [{"text": line} for line in lines])
        self.share = len(captions) / (len(repeated) - TINY)
        self.turns = Turns(self._run("tiny").wall)  # writes its bytecode, too

    def turn(self) -> None:
        opening, took = self._run("tiny"), self._run("whole")
        self.turns.wall.append((took.wall - opening.wall) * self.share)
        self.turns.cpu.append((took.cpu - opening.cpu) * self.share)
        self.turns.opening = min(self.turns.opening, opening.wall)

    def _run(self, name: str) -> Measured:
        with threads(1):
            return self.program.run(name)


# ── the benchmark ──


def chinese_lines(path: Path, wanted: int) -> list[str]:
    """So many Chinese lines (or all there are), drawn by a fixed seed."""
    table = pq.read_table(path)
    lines: list[str] = table["text"].to_pylist()
    if "language" in table.column_names:
        languages = table["language"].to_pylist()
        lines = [line for line, language in zip(lines, languages, strict=True) if str(language).startswith("zh")]
    else:
        lines = [line for line in lines if re.search("[\u4e00-\u9fff]", line)]
    random.Random(SEED).shuffle(lines)
    if len(lines) <= WARM:
        raise DanqingError(f"{path}: {len(lines)} Chinese lines; the benchmark needs more than {WARM}")
    return lines[:wanted]


def play(contestants: dict[str, Contestant | Outside], rounds: int) -> None:
    """Turns in order, the order reversed every other round."""
    for number in range(rounds):
        for name, contestant in list(contestants.items())[:: 1 if number % 2 == 0 else -1]:
            contestant.turn()
            console.print(f"round {number + 1}, {name}: {contestant.turns.wall[-1]:.3f} s", style="dim")


def new_table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name else "left")
    return table


def speed(turns: Turns, ours: Turns, rows: int) -> tuple[str, ...]:
    """Rate, time, CPU's share of the clock, ours / peer (median and range of the rounds), opening."""
    wall = median(turns.wall)
    ratios = [theirs / mine for theirs, mine in zip(turns.wall, ours.wall, strict=True)]
    between = f"{min(ratios):.2f} … {max(ratios):.2f}" if turns is not ours else ""
    busy = sum(turns.cpu) / sum(turns.wall)
    return (
        f"{rows / wall:,.0f}", f"{1e6 * wall / rows:,.2f}", f"{busy:.0%}", f"{median(ratios):.2f}", between,
        f"{turns.opening:.1f}",
    )  # fmt: skip


SPEED = ("captions/s", "µs a caption", "CPU / clock", "ours / it", "by round", "opening, s")


def segmentation(captions: list[str], rounds: int, core: int) -> None:
    rows = len(captions) - WARM
    for state, openers in SEGMENTERS.items():
        contestants: dict[str, Contestant | Outside] = {
            name: Contestant(opener, [core], captions) for name, opener in openers.items()
        }
        play(contestants, rounds)
        cuts = {name: end.result() for name, end in contestants.items() if isinstance(end, Contestant)}
        table = new_table(f"segmentation, {state}: {rows:,} captions, one core", "", *SPEED, "cut as ours")
        for name, contestant in contestants.items():
            same = ""
            if name != MARKS:
                equal = sum(mine == theirs for mine, theirs in zip(cuts["ours"], cuts[name], strict=True))
                same = f"{equal:,} ({equal / rows:.2%})"
            table.add_row(name, *speed(contestant.turns, contestants["ours"].turns, rows), same)
        console.print(table)
        close(contestants)


def whole_stage(captions: list[str], rounds: int, cores: Sequence[int], outside: Outside | None) -> None:
    rows = len(captions) - WARM
    contestants: dict[str, Contestant | Outside] = {
        name: Contestant(opener, cores[:1], captions) for name, opener in STAGES.items()
    }
    if len(cores) > 1:
        contestants[TWO] = Contestant(partial(our_stage, 2), cores[:2], captions)
    if outside:
        contestants[JUICER] = outside
    play(contestants, rounds)
    table = new_table(f"the whole stage: {rows:,} captions, one core unless it says two", "", *SPEED)
    ours = contestants["ours"].turns
    for name, contestant in contestants.items():
        table.add_row(name, *speed(contestant.turns, ours, rows))
    console.print(table)
    if TWO in contestants:
        gains = [one / two for one, two in zip(ours.wall, contestants[TWO].turns.wall, strict=True)]
        console.print(f"  ours from 1 to 2 cores: {median(gains):.2f} times the captions/s")
    if outside:
        console.print(f"  Data-Juicer wrote {', '.join(outside.program.figures('whole'))}.", style="dim")
        console.print(juicer.STAND_INS, style="dim", soft_wrap=True)
    else:
        console.print("  Data-Juicer was not measured: give --peers DIR.", style="dim")
    agreement({name: end.result() for name, end in contestants.items() if isinstance(end, Contestant)})
    close(contestants)


def agreement(results: dict[str, Columns]) -> None:
    """How many captions have the same figure as ours, column by column (numbers: to 0.0001)."""
    ours, others = results["ours"], [name for name in results if name not in ("ours", TWO)]
    table = new_table("captions with the same figure as ours", "", *others)
    for column in COLUMNS:
        shares = []
        for name in others:
            if column not in results[name]:
                shares.append("")
                continue
            mine, theirs = ours[column], results[name][column]
            if isinstance(mine[0], str):
                same = np.array([a == b for a, b in zip(mine, theirs, strict=True)])
            else:
                same = np.isclose(np.asarray(mine, float), np.asarray(theirs, float), rtol=0, atol=1e-4)
            shares.append(f"{same.mean():.2%}")
        table.add_row(column, *shares)
    console.print(table)


def close(contestants: dict[str, Contestant | Outside]) -> None:
    for contestant in contestants.values():
        if isinstance(contestant, Contestant):
            contestant.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, metavar="PARQUET", help="column 'text'; 'language' if it has one")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    peers = parser.add_mutually_exclusive_group()
    peers.add_argument("--setup-peers", type=Path, metavar="DIR", help="make Data-Juicer's environment in this folder")
    peers.add_argument("--peers", type=Path, metavar="DIR", help="measure Data-Juicer, too, from this folder")
    options = parser.parse_args()
    if not options.captions and not options.setup_peers:
        parser.error("--captions is missing")
    return in_scratch("text", partial(run, options))


def run(options: argparse.Namespace, scratch: Path) -> None:
    if options.setup_peers:
        juicer.ENVIRONMENT.make(options.setup_peers)
        console.print(f"Data-Juicer stands in {options.setup_peers}")
    if options.captions:
        captions = chinese_lines(options.captions, options.rows + WARM)
        cores = sorted(os.sched_getaffinity(0), reverse=True)
        folder = options.peers or options.setup_peers
        outside = Outside(folder, scratch, captions[WARM:], cores[0]) if folder else None
        peer = f", Data-Juicer {juicer.ENVIRONMENT.version(folder)}" if folder else ""
        console.print(f"{machine(PACKAGES)}{peer}", style="dim", soft_wrap=True)
        segmentation(captions, options.rounds, cores[0])
        whole_stage(captions, options.rounds, cores, outside)


if __name__ == "__main__":
    sys.exit(main())
