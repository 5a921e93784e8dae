"""What a person sees in the terminal: progress with rates, and tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from numba.core import event
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from danqing.engine.core.spans import Spans
from danqing.engine.decide.funnel import Funnel

if TYPE_CHECKING:
    from danqing.engine.report.differences import Difference
    from danqing.engine.report.topics import Topics
    from danqing.trt_models.card import Card
    from danqing.trt_models.engines import Engine

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)


class ProgressBar:
    """A progress bar on stderr: pairs done and pairs a second; the total is judged by the shards' bytes."""

    def __init__(self, label: str, total_bytes: int, unit: str = "pairs") -> None:
        self._bytes_left = self._total_bytes = total_bytes
        self._bar = Bar(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn(f"{unit}  {{task.fields[rate]:,.0f}} {unit}/s {{task.fields[remark]}}"), TimeElapsedColumn(),
            console=Console(stderr=True),
        )  # fmt: skip
        self._task = self._bar.add_task(label, total=None, rate=0.0, remark="")
        self._rows = 0
        self._compiling = event.install_listener("numba:compile", _Compilation(self._remark))

    def _remark(self, text: str) -> None:
        self._bar.update(self._task, remark=text)

    def expect(self, rows: int, size: int) -> None:
        self._rows += rows
        self._bytes_left -= size
        seen = self._total_bytes - self._bytes_left
        total = round(self._rows * max(self._total_bytes, seen) / seen) if seen else None
        self._bar.update(self._task, total=total)

    def advance(self, rows: int) -> None:
        self._bar.advance(self._task, rows)
        task = self._bar.tasks[0]
        if task.elapsed:
            self._bar.update(self._task, rate=task.completed / task.elapsed)

    def __enter__(self) -> ProgressBar:
        self._compiling.__enter__()
        self._bar.start()
        return self

    def __exit__(self, *outcome: object) -> None:
        self._bar.stop()
        self._compiling.__exit__(None, None, None)


class _Compilation(event.Listener):
    """Says that a kernel is being compiled, which happens once a machine and takes seconds."""

    def __init__(self, remark: Callable[[str], None]) -> None:
        self.remark = remark

    def on_start(self, event: event.Event) -> None:
        self.remark("(compiling kernels, first use only)")

    def on_end(self, event: event.Event) -> None:
        self.remark("")


def print_funnel(funnel: Funnel) -> None:
    """The funnel in the layout of the paper's Table 6."""
    table = Table(box=box.SIMPLE_HEAD, title=f"recipe {funnel.recipe}", title_justify="left")
    table.add_column("group", style="dim")
    table.add_column("step")
    table.add_column("rule", style="dim")
    for name in ("pairs left", "dropped", "share"):
        table.add_column(name, justify="right")
    table.add_row("", "collected", "", f"{funnel.collected:,}", "", "")
    before = ""
    for line in funnel.lines:
        section = line.section if line.section != before else ""
        before = line.section
        table.add_row(
            section, line.step, line.measured_rule, f"{line.left:,}", f"{line.dropped:,}", f"{line.share:.2%}"
        )
    console.print(table)


def print_spans(spans: Spans) -> None:
    """Of every stage: pairs seen, time at work and rate meanwhile, time spent waiting."""
    if not spans:
        return
    total = sum(span.seconds for span in spans.values())
    table = Table(box=box.SIMPLE_HEAD, caption="seconds; waits: for the stage before, for the stage behind")
    for name in ("stage", "pairs in", "at work", "share", "pairs/s", "waits", "waits behind"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, span in spans.items():
        rate = span.rows / span.seconds if span.seconds else 0.0
        shares = (f"{span.seconds:.2f}", f"{span.seconds / total:.1%}", f"{rate:,.0f}")
        table.add_row(name, f"{span.rows:,}", *shares, f"{span.starved:.2f}", f"{span.blocked:.2f}")
    console.print(table)


def print_topics(found: Topics) -> None:
    """Every topic's share and words, the largest first."""
    title = f"{len(found.topics):,} topics among {found.sample:,} of {found.kept:,} kept captions"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in ("topic", "captions", "share", "words"):
        table.add_column(heading, justify="left" if heading == "words" else "right")
    rows = [(str(number), topic.captions, topic.words) for number, topic in enumerate(found.topics[:TOPICS])]
    if smaller := found.topics[TOPICS:]:
        rows.append(("smaller", sum(topic.captions for topic in smaller), ()))
    for label, captions, words in (*rows, ("none", found.loose, ())):
        table.add_row(label, f"{captions:,}", f"{captions / found.sample:.2%}", " ".join(words))
    console.print(table)


def print_difference(found: Difference) -> None:
    """Two runs beside each other: score by score, then features, verdicts and what is objected to."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("score", "on both sides", "on one", "unequal", "largest difference", "at"):
        table.add_column(heading, justify="left" if heading in ("score", "at") else "right")
    for c in found.columns.values():
        largest = "" if c.exact else f"{c.largest:.2g}"
        name = c.name if c.judged else f"{c.name} (a model's)"
        table.add_row(name, f"{c.rows:,}", f"{c.one_sided:,}", f"{c.unequal:,}", largest, c.worst)
    console.print(table)
    if found.compared:
        mean = found.cosines / found.compared
        console.print(f"features: {found.compared:,} pairs, cosine {mean:.6f} on average, {found.cosine:.6f} at least")
    for key, ours, theirs in found.flips[:FLIPS]:
        console.print(f"  {key}: {ours or 'kept'} there, {theirs or 'kept'} here", markup=False)
    console.print(
        f"verdicts: {len(found.flips):,} of {found.rows:,} differ; "
        f"{found.regrouped:,} pairs in other sets of near-duplicates"
    )
    for objection in found.objections:
        console.print(f"not alike: {objection}", markup=False)
    if not found.objections:
        console.print("alike")


FLIPS, TOPICS = 20, 25
"""Verdicts that differ, and topics, shown at most."""


MAX_TABLE_COLUMNS = 1000
"""Width of a table whose lines may be longer than the terminal's, at most."""


def print_models(rows: Iterable[tuple[Card, str, list[str]]]) -> None:
    """The model cards: what each is for, whether it can be used at once, and its engines, one a line.

    Names are copied into commands, so lines are never broken: the table is as wide as its longest row.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("model", "for", "comes from", "here", "engines"):
        table.add_column(heading, no_wrap=True)
    for card, here, engines in rows:
        source = card.published or ("packages" if card.build or card.lexicon else "its card")
        table.add_row(card.name, card.task.replace("_", " "), source, here, "\n".join(engines))
    unlimited = console.options.update(width=MAX_TABLE_COLUMNS)
    table.width = console.measure(table, options=unlimited).maximum
    console.print(table, crop=False, no_wrap=True)


def print_fusion(options: Mapping[str, Any]) -> None:
    """Prints the fused operators of an engine's graph, and the plain ones that a fused one could have replaced."""
    before, after = options["nodes"]
    if not options["fused"]:
        console.print(f"none of the {before} nodes were fused")
        return
    table = Table(box=box.SIMPLE_HEAD, title=f"{before} nodes, {after} after fusing", title_justify="left")
    table.add_column("operator")
    table.add_column("nodes", justify="right")
    table.add_column("")
    for state in ("fused", "left"):
        for operator, count in options[state].items():
            table.add_row(operator, str(count), state)
    console.print(table)


def print_parity(engine: Engine) -> None:
    """How near an engine comes to its model."""
    parity = engine.parity
    assert parity is not None
    table = Table(box=box.SIMPLE_HEAD, title=engine.name, title_justify="left")
    for heading in ("", "found", "wanted"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row(f"mean {parity.measure}", f"{parity.cosine_mean:.6f}", f"≥ {parity.wanted['cosine_mean']}")
    table.add_row(f"least {parity.measure}", f"{parity.cosine_min:.6f}", "")
    table.add_row("verdicts that change", f"{parity.flips:.3%}", f"≤ {parity.wanted['flips']:.3%}")
    ratio = parity.rate / parity.reference_rate if parity.reference_rate else 0
    table.add_row("rows a second", f"{parity.rate:,.1f}", f"(fp32: {parity.reference_rate:,.1f}, {ratio:.2f} ×)")
    if parity.torch_rate:
        table.add_row("", "", f"(torch.compile: {parity.torch_rate:,.1f}, {parity.rate / parity.torch_rate:.2f} ×)")
    console.print(table)
    console.print(
        f"{parity.rows} pairs, recipe {parity.recipe}: parity {'passed' if parity.passed else '[bold]failed[/]'}"
    )
