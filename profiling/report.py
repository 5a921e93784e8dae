"""Shows a profile: a table in the terminal, and a page with a timeline."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from danqing.engine.core.spans import Event
from danqing.engine.report.html import write_page
from danqing.engine.report.terminal import console
from danqing.profiling.profile import Profile
from danqing.profiling.sampler import Reading

WIDTH, LANE, LEFT = 1000, 18, 140
"""Pixels: width of a drawing, height of a row, and width of the names at the left."""
MAX_BOXES = 5000
"""Maximum number of batches in the timeline; trace.json has more."""
COLOURS = (
    "#2f6fde", "#c8553d", "#3a8f5c", "#b8860b", "#7b5ea7", "#3b8ea5", "#a05a7d", "#6b7280", "#8fb339", "#e07b39",
    "#5b5fc7", "#2a9d8f", "#d1495b", "#9c6644", "#457b9d",
)  # fmt: skip
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


def write_profile(path: Path, profile: Profile, events: Sequence[Event], readings: Sequence[Reading]) -> None:
    """Writes the page: table, summary, and drawings of stages, threads, cores and GPU."""
    head = "".join(f"<th>{name}" for name in COLUMNS)
    body = "".join(
        f"<tr><td>{html.escape(row[0])}" + "".join(f"<td class=n>{cell}" for cell in row[1:]) for row in _rows(profile)
    )
    whole = _Axis(min(event.started for event in events), profile.seconds)
    parts = [
        "<h1>Where the time goes</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in _summary(profile)),
        f"<table><tr>{head}{body}</table><p>{LEGEND}</p>",
        "<h2>Stages</h2><p>Seconds of processing, and seconds at the limit of the codec or network (light).</p>",
        _bars(profile),
        f"<h2>Threads</h2><p>One box per batch, for the first {MAX_BOXES:,}; gaps are waits.</p>",
        _timeline(profile, events),
        "<h2>Cores</h2><p>Share of the cores that this process keeps busy.</p>",
        _curve(whole, [(reading.at, reading.cores / profile.threads) for reading in readings]),
    ]
    if any(reading.gpu for reading in readings):
        parts += ["<h2>GPU</h2><p>Share of the time in which kernels ran.</p>"]
        parts += [_curve(whole, [(reading.at, reading.gpu.busy) for reading in readings if reading.gpu])]
    write_page(path, "DanQing profile", parts)


class _Axis(NamedTuple):
    """The horizontal axis of time."""

    start: float
    seconds: float

    def x(self, moment: float) -> float:
        return LEFT + self.width(moment - self.start)

    def width(self, seconds: float) -> float:
        return seconds / self.seconds * (WIDTH - LEFT)


def _timeline(profile: Profile, events: Sequence[Event]) -> str:
    events = events[:MAX_BOXES]
    start = min(event.started for event in events)
    axis = _Axis(start, max(event.started + event.seconds for event in events) - start)
    threads = list(dict.fromkeys(event.thread for event in events))
    colours = {f.stage: COLOURS[number % len(COLOURS)] for number, f in enumerate(profile.stages)}
    names = [
        f"<text x=0 y={row * LANE + 13} font-size=12>{html.escape(thread.removeprefix('danqing '))}</text>"
        for row, thread in enumerate(threads)
    ]
    boxes = [
        f"<rect x={axis.x(e.started):.1f} y={threads.index(e.thread) * LANE} "
        f"width={max(axis.width(e.seconds), 0.3):.1f} height={LANE - 4} fill='{colours[e.stage]}'>"
        f"<title>{html.escape(e.stage)}: {e.rows} pairs, {e.seconds * 1e3:.1f} ms</title></rect>"
        for e in events
    ]
    key = " ".join(f"<span style='color:{colour}'>■</span> {html.escape(name)}" for name, colour in colours.items())
    drawn = "".join(names + boxes)
    return f"<svg viewBox='0 0 {WIDTH} {len(threads) * LANE}' width=100%>{drawn}</svg><p>{key}</p>"


def _bars(profile: Profile) -> str:
    unit = (WIDTH - LEFT - 80) / (profile.slowest.work or 1.0)
    bars = []
    for row, f in enumerate(profile.stages):
        top, width, at_limit = row * LANE, f.work * unit, (f.pairs / f.limit if f.limit else 0.0) * unit
        bars += [
            f"<text x=0 y={top + 13} font-size=12>{html.escape(f.stage)}</text>"
            f"<rect x={LEFT} y={top} width={width:.1f} height={LANE - 4} fill='{COLOURS[0]}'/>"
            f"<rect x={LEFT} y={top + 4} width={at_limit:.1f} height={LANE - 12} fill='#cfe0ff'/>"
            f"<text x={LEFT + 10 + width:.1f} y={top + 13} font-size=12>{f.work:.2f}</text>"
        ]
    return f"<svg viewBox='0 0 {WIDTH} {len(profile.stages) * LANE}' width=100%>{''.join(bars)}</svg>"


def _curve(axis: _Axis, shares: Sequence[tuple[float, float]]) -> str:
    """Draws a curve of (moment, share from 0 to 1)."""
    height = 80
    points = " ".join(f"{axis.x(moment):.1f},{height * (1 - min(share, 1)):.1f}" for moment, share in shares)
    line = f"<polyline points='{points}' fill=none stroke='{COLOURS[0]}'/>"
    return f"<svg viewBox='0 0 {WIDTH} {height}' width=100%>{line}</svg>"
