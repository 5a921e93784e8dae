"""What a profile looks like: a table in the terminal, a page with a timeline."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from engine.report.html import write_page
from engine.report.terminal import console
from profiling.profile import Profile
from profiling.sampler import Look
from profiling.spans import Event

WIDTH, LANE = 1000, 18
COLOURS = ("#2f6fde", "#c8553d", "#3a8f5c", "#b8860b", "#7b5ea7", "#3b8ea5", "#a05a7d", "#6b7280")
COLUMNS = ("stage", "pairs in", "passed on", "pairs/s alone", "share of work", "at work", "waits", "waits behind")


def print_profile(profile: Profile) -> None:
    table = Table(
        box=box.SIMPLE_HEAD, caption="at work, waits (for the stage before, for the one behind): seconds, all at once"
    )
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in _rows(profile):
        table.add_row(*row)
    console.print(table)
    for line in _summary(profile):
        console.print(line)


def _rows(profile: Profile) -> list[tuple[str, ...]]:
    work = sum(figures.alone for figures in profile.stages)
    return [
        (
            f.stage, f"{f.pairs:,}", f"{f.passed:,}", f"{f.rate:,.0f}", f"{f.alone / work:.1%}",
            f"{f.together:.2f}", f"{f.starved:.2f}", f"{f.blocked:.2f}",
        )
        for f in profile.stages
    ]  # fmt: skip


def _summary(profile: Profile) -> list[str]:
    rate, in_turn = profile.pairs / profile.seconds, profile.pairs / profile.in_turn
    return [
        f"{rate:,.1f} pairs/s end to end; {in_turn:,.1f} with the stages in turn ({rate / in_turn:.2f} times)",
        f"{profile.efficiency:.2f} of the rate of {profile.slowest.stage} alone; {profile.threads} cores "
        f"{profile.cores_busy:.0%} busy; at most {profile.peak / 1e6:,.0f} MB",
        profile.verdict,
    ]


def write_profile(path: Path, profile: Profile, events: Sequence[Event], looks: Sequence[Look]) -> None:
    head = "".join(f"<th>{name}" for name in COLUMNS)
    body = "".join(
        f"<tr><td>{html.escape(row[0])}" + "".join(f"<td class=n>{cell}" for cell in row[1:]) for row in _rows(profile)
    )
    parts = [
        "<h1>Where the time goes</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in _summary(profile)),
        f"<table><tr>{head}{body}</table>",
        "<h2>Threads</h2><p>A box a batch; gaps are waits.</p>",
        _timeline(profile, events),
        "<h2>Cores</h2><p>How many this process kept busy.</p>",
        _cores(profile, looks),
    ]
    write_page(path, "DanQing profile", parts)


def _timeline(profile: Profile, events: Sequence[Event]) -> str:
    start = min(event.started for event in events)
    threads = list(dict.fromkeys(event.thread for event in events))
    colours = {f.stage: COLOURS[number % len(COLOURS)] for number, f in enumerate(profile.stages)}
    boxes = [
        f"<rect x={(e.started - start) / profile.seconds * WIDTH:.1f} y={threads.index(e.thread) * LANE} "
        f"width={max(e.seconds / profile.seconds * WIDTH, 0.3):.1f} height={LANE - 4} fill='{colours[e.stage]}'>"
        f"<title>{html.escape(e.stage)}: {e.rows} pairs, {e.seconds * 1e3:.1f} ms</title></rect>"
        for e in events
    ]
    key = " ".join(f"<span style='color:{colour}'>■</span> {html.escape(name)}" for name, colour in colours.items())
    return f"<svg viewBox='0 0 {WIDTH} {len(threads) * LANE}' width=100%>{''.join(boxes)}</svg><p>{key}</p>"


def _cores(profile: Profile, looks: Sequence[Look]) -> str:
    height, start = 80, looks[0].at
    points = " ".join(
        f"{(look.at - start) / profile.seconds * WIDTH:.1f},{height * (1 - min(look.cores / profile.threads, 1)):.1f}"
        for look in looks
    )
    line = f"<polyline points='{points}' fill=none stroke='{COLOURS[0]}'/>"
    return f"<svg viewBox='0 0 {WIDTH} {height}' width=100%>{line}</svg>"
