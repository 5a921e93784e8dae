"""Shows a profile: a table in the terminal, and a page with a timeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from rich import box
from rich.markup import escape
from rich.table import Table

from danqing import __version__
from danqing.engine.core.spans import Event
from danqing.engine.report.figures import Line, Plot, Scale, curves, rect, svg, text
from danqing.engine.report.page import write_page
from danqing.engine.report.terminal import console
from danqing.profiling.profile import Profile
from danqing.profiling.sampler import Reading

WIDTH, LANE, LEFT = 1000, 18, 140
"""Pixels: width of a drawing, height of a row, and width of the names at the left."""
MAX_BOXES = 5000
"""Maximum number of batches in the timeline; trace.json has more."""
COLOURS = 15
"""Number of colours of stages, see the page's style."""
COLUMNS = (
    "stage", "pairs in", "passed on", "errors", "pairs/s", "limit/s", "of limit", "of work", "fill", "MB in", "MB out",
    "seconds", "starved", "blocked",
)  # fmt: skip
LEGEND = """\
pairs/s: while no other stage runs. limit/s: the stage's codec or network alone, with full batches; the limit of a stage
without one is copying its inputs and outputs. fill: how full its batches are. Of the pipelined run: seconds of
processing, of waiting for input (starved), and of waiting for space in the output queue (blocked)."""


def print_profile(profile: Profile) -> None:
    """Prints the table and the summary."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in _rows(profile):
        table.add_row(*map(escape, row))
    console.print(table)
    console.print(LEGEND, style="dim")
    for line in _summary(profile):
        console.print(line)


def _rows(profile: Profile) -> list[tuple[str, ...]]:
    work = sum(figures.work for figures in profile.stages)
    return [
        (
            f.stage, f"{f.pairs:,}", f"{f.passed:,}", f"{f.failed:,}", f"{f.rate:,.0f}",
            f"{f.limit:,.0f}" if f.limit else "", f"{f.share(profile.copy):.0%}", f"{f.work / work:.1%}",
            "" if f.fill is None else f"{f.fill:.0%}", f"{f.bytes_read / 1e6:,.1f}", f"{f.bytes_written / 1e6:,.1f}",
            f"{f.pipelined_seconds:.2f}", f"{f.starved_seconds:.2f}", f"{f.blocked_seconds:.2f}",
        )
        for f in profile.stages
    ]  # fmt: skip


def _summary(profile: Profile) -> list[str]:
    found = [f"{profile.pairs / profile.seconds:,.1f} pairs/s end to end"]
    if profile.sequential_seconds:
        found[0] += f", {profile.sequential_seconds / profile.seconds:.2f} × the rate of the sequential run"
        found[0] += f", {profile.efficiency:.2f} × the rate of {profile.slowest.stage} alone"
    found.append(
        f"{profile.threads} cores {profile.cores_busy:.0%} busy; peak memory {profile.peak / 1e6:,.0f} MB; "
        f"memory copied at {profile.copy / 1e9:.1f} GB/s"
    )
    if gpu := profile.gpu:
        up, down = profile.copied
        found.append(
            f"GPU {gpu.busy:.0%} busy, its JPEG decoder {gpu.jpeg:.0%}; peak GPU memory {gpu.memory / 1e6:,.0f} MB; "
            f"{gpu.power:.0f} W; per pair {up:,.0f} bytes copied to the GPU, {down:,.0f} from it"
        )
    return [*found, profile.verdict]


@dataclass(frozen=True)
class Drawing:
    """One figure of the page.

    Attributes:
        title: its heading.
        caption: what it shows.
        drawing: the SVG.
        key: names of its colours, with their numbers.
        wide: whether a narrow screen scrolls it.
    """

    title: str
    caption: str
    drawing: Markup
    key: Sequence[tuple[str, int]] = ()
    wide: bool = False


def write_profile(path: Path, profile: Profile, events: Sequence[Event], readings: Sequence[Reading]) -> None:
    """Writes the page: table, summary, and drawings of stages, threads, cores and GPU."""
    start = min(event.started for event in events)
    key = [(figures.stage, number % COLOURS) for number, figures in enumerate(profile.stages)]
    cores = [(reading.at - start, reading.cores / profile.threads) for reading in readings]
    figures = [
        Drawing(
            "Work",
            "Seconds of processing; light: seconds at the limit of the codec or network.",
            _bars(profile),
            wide=True,
        ),
        Drawing(
            "Threads",
            f"One box for each batch, of the first {MAX_BOXES:,}; gaps are waits.",
            _timeline(profile, events),
            key,
            wide=True,
        ),
        Drawing("Cores", "Share of the cores that this process keeps busy.", _curve("cores busy (%)", profile, cores)),
    ]
    if any(reading.gpu for reading in readings):
        gpu = [(reading.at - start, reading.gpu.busy) for reading in readings if reading.gpu]
        caption = "Share of the time in which kernels ran."
        figures.append(Drawing("GPU", caption, _curve("GPU busy (%)", profile, gpu)))
    write_page(
        path,
        "profile.html",
        "DanQing profile",
        summary=_summary(profile),
        columns=COLUMNS,
        rows=_rows(profile),
        legend=LEGEND,
        figures=figures,
        version=__version__,
    )


def _timeline(profile: Profile, events: Sequence[Event]) -> Markup:
    events = events[:MAX_BOXES]
    start = min(event.started for event in events)
    seconds = max(event.started + event.seconds for event in events) - start
    scale = Scale(0, seconds or 1.0)
    threads = list(dict.fromkeys(event.thread for event in events))
    number = {figures.stage: at % COLOURS for at, figures in enumerate(profile.stages)}
    names = [text(0, row * LANE + 13, thread.removeprefix("danqing ")) for row, thread in enumerate(threads)]
    boxes = [
        rect(
            LEFT + scale.at(e.started - start) * (WIDTH - LEFT),
            threads.index(e.thread) * LANE,
            max(scale.at(e.seconds) * (WIDTH - LEFT), 0.3),
            LANE - 4,
            f"stage{number[e.stage]}",
            f"{e.stage}: {e.rows} pairs, {e.seconds * 1e3:.1f} ms",
        )
        for e in events
    ]
    bottom = len(threads) * LANE
    ticks = [
        text(LEFT + scale.at(tick) * (WIDTH - LEFT), bottom + 14, f"{tick:g} s", "tick", "middle")
        for tick in scale.ticks(8)[1:-1]
    ]
    return svg(WIDTH, bottom + 20, "Batches of each thread over time", [*names, *boxes, *ticks])


def _bars(profile: Profile) -> Markup:
    longest = profile.slowest.work or 1.0
    full = WIDTH - LEFT - 80
    parts = []
    for row, f in enumerate(profile.stages):
        top, width = row * LANE, f.work / longest * full
        at_limit = (f.pairs / f.limit if f.limit else 0.0) / longest * full
        parts += [text(0, top + 13, f.stage), rect(LEFT, top, width, LANE - 4, "kept")]
        parts += [rect(LEFT, top + 4, at_limit, LANE - 12, "light")]
        parts += [text(LEFT + 10 + width, top + 13, f"{f.work:.2f} s", "value")]
    return svg(WIDTH, len(profile.stages) * LANE, "Seconds of processing of each stage", parts)


def _curve(name: str, profile: Profile, shares: Sequence[tuple[float, float]]) -> Markup:
    """Draws (seconds, share from 0 to 1) with axes."""
    plot = Plot(f"{name} over time", "seconds", name)
    points = [(moment, 100 * min(share, 1.0)) for moment, share in shares]
    return curves(plot, [Line(points)], Scale(0, profile.seconds or 1.0), Scale(0, 100))
