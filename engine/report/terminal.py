"""Terminal output: progress on stderr, tables on stdout."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from numba.core import event
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from danqing.engine.core.columns import FEATURES
from danqing.engine.core.escape import escaped
from danqing.engine.core.spans import Spans
from danqing.engine.decide.funnel import Funnel

if TYPE_CHECKING:
    from danqing.engine.report.calibration import Calibration, Calibrations
    from danqing.engine.report.differences import Difference
    from danqing.engine.report.topics import Topics
    from danqing.trt_models.card import Card
    from danqing.trt_models.engines import Engine

PIPE_COLUMNS = 140
"""Width of tables that are written to a pipe or a file, unless COLUMNS is set."""
NARROW_COLUMNS = 120
"""Below this width the funnel's sections become headings of their own and the step's title is left out."""
MAX_TABLE_COLUMNS = 1000
"""Maximum width of a table whose lines must not be broken."""
LINE_SECONDS = 10.0
"""Time between two lines of progress where stderr is not a terminal."""
MAX_FLIPS = 20
"""Maximum number of changed verdicts listed by `print_difference`."""
MAX_TOPICS = 25
"""Maximum number of topics listed by `print_topics`."""


class SafeConsole(Console):
    """A console that shows control characters of names, captions and errors as escapes."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Converts a string to text, escaped before it is measured."""
        return super().render_str(escaped(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yields the segments of a renderable, their text escaped; codes for colours are added to it later."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escaped(segment.text), segment.style)


console = SafeConsole(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS, highlight=False)


@dataclass
class _Display:
    """Display of progress: none if `quiet`; `note` is printed once, before the first progress."""

    quiet: bool = False
    note: str = ""


_display: ContextVar[_Display | None] = ContextVar("display", default=None)


@contextmanager
def display(quiet: bool = False, note: str = "") -> Iterator[None]:
    """Sets how progress is shown during a `with` block.

    Args:
        quiet: show no progress.
        note: one line for stderr, printed when the first phase starts, so that bad input is reported without it.
    """
    token = _display.set(_Display(quiet, note))
    try:
        yield
    finally:
        _display.reset(token)


class ProgressBar:
    """Shows the progress of one phase on stderr: rows done, rate and estimated time left.

    On a terminal this is a bar. Elsewhere it is a plain line every `LINE_SECONDS` and one at the end, without control
    characters, for log files.

    Args:
        label: name of the phase.
        total_bytes: bytes of all shards, from which the total number of rows is estimated; 0 if unknown.
        unit: what is counted.
        quiet: show nothing (default: as set by `display`).
    """

    def __init__(self, label: str, total_bytes: int, unit: str = "pairs", quiet: bool | None = None) -> None:
        self._label, self._unit = label, unit
        self._total_bytes, self._seen_bytes, self._rows = total_bytes, 0, 0
        self._stream = sys.stderr
        shown = _display.get() or _Display()
        self._quiet = shown.quiet if quiet is None else quiet
        if shown.note and not self._quiet:
            print(shown.note, file=self._stream)
            shown.note = ""
        err = SafeConsole(stderr=True)
        self._on_terminal = self._stream.isatty() and not err.is_dumb_terminal
        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), _StatusColumn(unit)
        self._bar = Bar(*columns, console=err, disable=self._quiet or not self._on_terminal)
        self._task = self._bar.add_task(label, total=None, remark="")
        self._stopped = threading.Event()
        self._open = ExitStack()

    def expect(self, rows: int, size: int) -> None:
        """Adds the rows of a shard of `size` bytes to the total."""
        self._rows += rows
        self._seen_bytes += size
        scale = max(self._total_bytes / self._seen_bytes, 1.0) if self._seen_bytes else 1.0
        self._bar.update(self._task, total=round(self._rows * scale))

    def advance(self, rows: int) -> None:
        """Adds rows to those that are done."""
        self._bar.advance(self._task, rows)

    def say(self, line: str) -> None:
        """Prints a line, unless quiet."""
        if not self._quiet:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> ProgressBar:
        self._open.enter_context(event.install_listener("numba:compile", _CompileListener(self._remark)))
        self._bar.start()
        if not self._quiet and not self._on_terminal:
            threading.Thread(target=self._print_lines, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._stopped.set()
        self._bar.stop()
        self._open.close()
        task = self._bar.tasks[0]
        if kind is None and task.completed and not self._quiet and not self._on_terminal:
            seconds = task.elapsed or 1e-9
            rate = _number(task.completed / seconds)
            done = f"{task.completed:,.0f} {self._unit} in {_duration(seconds)}, {rate} {self._unit}/s"
            print(f"{self._label}: {done}", file=self._stream, flush=True)

    def _remark(self, text: str) -> None:
        self._bar.update(self._task, remark=text)

    def _print_lines(self) -> None:
        while not self._stopped.wait(LINE_SECONDS):
            print(f"{self._label}: {_status(self._bar.tasks[0], self._unit)}", file=self._stream, flush=True)


class _StatusColumn(ProgressColumn):
    """The text after the bar."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(_status(task, self.unit), no_wrap=True, overflow="ellipsis")


def _status(task: Task, unit: str) -> str:
    """Rows done, total, rate over the last 30 s, and the time left at that rate."""
    counted = f"{task.completed:,.0f}" if task.total is None else f"{task.completed:,.0f} of {task.total:,.0f}"
    overall = task.completed / task.elapsed if task.elapsed else 0.0
    parts = [f"{counted} {unit}", f"{_number(task.finished_speed or task.speed or overall)}/s"]
    if task.finished:
        parts.append(_duration(task.finished_time or 0))
    elif task.time_remaining is not None:
        parts.append(f"{_duration(task.time_remaining)} left")
    return ", ".join(parts) + task.fields["remark"]


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate == 0 or rate >= 10 else f"{rate:.1f}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class _CompileListener(event.Listener):
    """Remarks that a kernel is being compiled: this takes seconds, once per machine."""

    def __init__(self, remark: Callable[[str], None]) -> None:
        self.remark = remark

    def on_start(self, event: event.Event) -> None:
        self.remark(" (compiling kernels, first use only)")

    def on_end(self, event: event.Event) -> None:
        self.remark("")


def print_funnel(funnel: Funnel) -> None:
    """Prints the funnel in the layout of the paper's Table 6. Names of criteria are never broken."""
    narrow = console.width < NARROW_COLUMNS
    table = Table(box=box.SIMPLE_HEAD, title=escape(f"recipe {funnel.recipe}"), title_justify="left")
    if not narrow:
        table.add_column("section", style="dim")
        table.add_column("step")
    longest = max((len(line.criterion) for line in funnel.lines), default=0)
    table.add_column("rule", overflow="fold", min_width=longest + 1)
    for name in ("pairs left", "dropped", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(*(["collected"] if narrow else ["", "collected", ""]), f"{funnel.collected:,}", "", "")
    before = ""
    for line in funnel.lines:
        section = line.section if line.section != before else ""
        before = line.section
        rule = line.measured_rule if line.criterion in line.measured_rule else f"{line.criterion}: {line.measured_rule}"
        counts = f"{line.left:,}", f"{line.dropped:,}", f"{line.share:.2%}"
        if narrow and section:
            table.add_row(Text(section, "bold"))
        table.add_row(*([] if narrow else [escape(section), escape(line.step)]), escape(rule), *counts)
    console.print(table)


def print_spans(spans: Spans) -> None:
    """Prints each stage's pairs, times and rate."""
    if not spans:
        return
    total = sum(span.seconds for span in spans.values())
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="seconds: processing; starved: waiting for input; blocked: waiting for space in the output queue",
    )
    for name in ("stage", "pairs in", "seconds", "of work", "pairs/s", "starved", "blocked"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for name, span in spans.items():
        rate = span.rows / span.seconds if span.seconds else 0.0
        shares = (f"{span.seconds:.2f}", f"{span.seconds / total:.1%}", f"{rate:,.0f}")
        table.add_row(
            escape(name), f"{span.rows:,}", *shares, f"{span.starved_seconds:.2f}", f"{span.blocked_seconds:.2f}"
        )
    console.print(table)


def print_topics(found: Topics) -> None:
    """Prints every topic's share and words, the largest topic first."""
    title = f"{len(found.topics):,} topics among {found.sample:,} of {found.kept:,} kept captions"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in ("topic", "captions", "share", "words"):
        table.add_column(heading, justify="left" if heading == "words" else "right")
    rows = [(str(number), topic.captions, topic.words) for number, topic in enumerate(found.topics[:MAX_TOPICS])]
    if smaller := found.topics[MAX_TOPICS:]:
        rows.append(("smaller", sum(topic.captions for topic in smaller), ()))
    for label, captions, words in (*rows, ("none", found.loose, ())):
        table.add_row(label, f"{captions:,}", f"{captions / found.sample:.2%}", escape(" ".join(words)))
    console.print(table)


def print_difference(found: Difference) -> None:
    """Prints a comparison of two runs: scores, features, verdicts, and what is beyond the tolerance."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("score", "on both sides", "on one", "unequal", "largest difference", "at"):
        table.add_column(heading, justify="left" if heading in ("score", "at") else "right", no_wrap=heading == "score")
    for c in found.columns.values():
        largest = "" if c.exact else f"{c.largest:.2g}"
        name = c.name if c.judged else f"{c.name} (a model's)"
        table.add_row(escape(name), f"{c.rows:,}", f"{c.one_sided:,}", f"{c.unequal:,}", largest, escape(c.worst))
    console.print(table)
    for line in found.models:
        console.print(line, markup=False)
    if found.compared:
        mean = found.cosines / found.compared
        console.print(f"features: {found.compared:,} pairs, mean cosine {mean:.6f}, minimum {found.cosine:.6f}")
    for key, ours, theirs in found.flips[:MAX_FLIPS]:
        console.print(f"  {key}: {ours or 'kept'} there, {theirs or 'kept'} here", markup=False)
    if len(found.flips) > MAX_FLIPS:
        console.print(f"  … and {len(found.flips) - MAX_FLIPS:,} more")
    console.print(
        f"verdicts: {len(found.flips):,} of {found.rows:,} differ; "
        f"{found.regrouped:,} pairs are in other groups of near-duplicates"
    )
    for objection in found.objections:
        console.print(f"beyond the tolerance: {objection}", markup=False)
    if not found.objections:
        console.print("the runs agree")


def print_calibration(found: Calibrations) -> None:
    """Prints what each criterion joins: the copies by kind, the pairs of pictures, and the pairs to look at."""
    for calibration in found.criteria:
        _print_criterion(calibration, found)
    console.print(f"features of the same pictures as the run stores them: at most {found.drift:.6f} away")


def _print_criterion(found: Calibration, of: Calibrations) -> None:
    bits, name = found.column != FEATURES, found.criterion or "no criterion of the recipe"
    rule = f"bits of {found.column} that differ" if bits else f"cosine distance of the features of {of.model}"
    title = f"{escape(name)}: {rule}, {of.pictures:,} pictures"
    chosen = " (* the recipe's)" if found.chosen in found.within else ""
    table = Table(box=box.SIMPLE_HEAD, title=f"{title}; share joined{chosen}", title_justify="left")
    for heading in ("copy", "copies", "median"):
        table.add_column(heading, justify="left" if heading == "copy" else "right", no_wrap=True)
    for value in found.within:
        heading = f"{'≤' if bits else '<'} {value:g}{'*' if value == found.chosen else ''}"
        table.add_column(heading, justify="right", no_wrap=True)
    for kind in found.copies:
        last = kind is found.copies[-2]
        shares = (f"{count / kind.copies:.1%}" if kind.copies else "–" for count in kind.joined)
        median = "–" if kind.median is None else f"{kind.median:.3g}"
        table.add_row(kind.kind, f"{kind.copies:,}", median, *shares, end_section=last)
    table.add_section()
    for label, pairs in (("pairs that the run joins", found.grouped), ("other pairs", found.others)):
        counts = (f"{count:,} ({count / pairs.pairs:.4%})" if count else "0" for count in pairs.joined)
        table.add_row(label, f"{pairs.pairs:,}", "", *counts)
    console.print(table)
    for label, pairs in (("farthest pairs that the run joins", found.grouped), ("nearest other pairs", found.others)):
        if pairs.shown:
            console.print(f"{label}; look at them:")
        for pair in pairs.shown:
            console.print(f"  {pair.distance:<9.4g} {pair.first}   {pair.second}", markup=False)


def print_models(rows: Iterable[tuple[Card, str, list[str]]]) -> None:
    """Prints the model cards: task, source, whether the model is here, and its engines, one a line.

    Names are copied into commands, so lines are never broken: the table is as wide as its longest row.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("model", "for", "comes from", "here", "engines"):
        table.add_column(heading, no_wrap=True)
    for card, here, engines in rows:
        source = card.published or ("packages" if card.build or card.lexicon else "its card")
        cells = card.name, card.task.replace("_", " "), source, here, "\n".join(engines)
        table.add_row(*map(escape, cells))
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
    """Prints how closely an engine agrees with its model."""
    parity = engine.parity
    assert parity is not None
    table = Table(box=box.SIMPLE_HEAD, title=escape(engine.name), title_justify="left")
    for heading in ("", "found", "wanted"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row(f"mean {parity.measure}", f"{parity.cosine_mean:.6f}", f"≥ {parity.wanted['cosine_mean']}")
    table.add_row(f"least {parity.measure}", f"{parity.cosine_min:.6f}", "")
    table.add_row("verdicts that change", f"{parity.flips:.3%}", f"≤ {parity.wanted['flips']:.3%}")
    if parity.drop is not None:
        table.add_row("largest fall of a metric", f"{parity.drop:.3%}", f"≤ {parity.wanted['drop']:.3%}")
    ratio = parity.rate / parity.reference_rate if parity.reference_rate else 0
    table.add_row("rows a second", f"{parity.rate:,.1f}", f"(fp32: {parity.reference_rate:,.1f}, {ratio:.2f} ×)")
    if parity.torch_rate:
        table.add_row("", "", f"(torch.compile: {parity.torch_rate:,.1f}, {parity.rate / parity.torch_rate:.2f} ×)")
    console.print(table)
    verdict = "passed" if parity.passed else "[bold]failed[/]"
    console.print(f"{parity.rows} pairs, recipe {escape(parity.recipe)}: parity {verdict}")
