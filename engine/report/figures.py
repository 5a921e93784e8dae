"""Figures as SVG: axes, histograms, heat maps, horizontal bars and dots.

Colours are CSS classes of the page (`templates/style.css`), so that a figure follows the page's light or dark theme;
`standalone` adds them to a figure that is written to a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 210
"""Pixels of a drawing before it is scaled to the page."""
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 22, 40
"""Margins of the plot, for axes and their labels."""
UPPER = 22
"""Height of a second horizontal axis above the plot."""
BINS = 48
"""Number of bins of a histogram over a continuous range."""
MAX_UNIT_BINS = 64
"""Integers get a bin each if there are at most this many."""
SKEW = 12.0
"""A range is drawn on a logarithmic axis if its 99.5th percentile is this many times its median."""
LATIN_ADVANCE = 0.58
"""Width of a Latin letter in ems; a Han character has 1 em."""
CJK_START = 0x2E80
"""First code point of the characters that are one em wide."""
BAR_PIXELS, VALUE_PIXELS = 180, 102
"""Widths of a horizontal bar of full length, and of the text at its right."""
LABEL_EM = 12
"""Pixels of an em of a bar's label; the page enlarges labels by a little on narrow screens."""


@dataclass(frozen=True)
class Figure:
    """One figure of the report, for each of the runs side by side.

    Attributes:
        name: of its file.
        title: its heading.
        drawings: SVG of each run; None if the run has no such data.
        notes: a line below each drawing.
        numbers: what is drawn, for report.json.
        wide: whether it takes the page's width.
    """

    name: str
    title: str
    drawings: Sequence[Markup | None]
    notes: Sequence[str] = ()
    numbers: Sequence[Any] = field(default_factory=list)
    wide: bool = False


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`; its ticks are integers if it is `whole`.

    >>> Scale(1, 1000, log=True).at(10) == Scale(0, 3).at(1)
    True
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, value: float) -> float:
        """Position of a value, from 0 to 1; values outside are at the ends."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low) if high > low else 0.5

    def edges(self, bins: int = BINS) -> np.ndarray:
        """float64 (bins + 1,): the borders of bins of equal width on the axis."""
        spaced = np.geomspace if self.log else np.linspace
        return np.asarray(spaced(self.low, self.high, bins + 1))

    def ticks(self, count: int = 5) -> list[float]:
        """Round values on the axis, about `count`."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            stride = max(1, math.ceil((last - first) / count))
            decades = [10.0**power for power in range(first, last + 1, stride)]
            if last - first >= 2:
                return decades
            finer = [m * 10.0**p for p in range(first - 1, last + 1) for m in (1, 2, 5)]
            return [value for value in finer if self.low <= value <= self.high * (1 + 1e-9)]
        raw = max((self.high - self.low) / count, 1.0 if self.whole else 0.0)
        if raw <= 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(raw))
        steps = (1.0, 2.0, 5.0, 10.0) if self.whole else (1.0, 2.0, 2.5, 5.0, 10.0)
        step = power * min(steps, key=lambda m: abs(m * power - raw))
        lowest = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(lowest, math.floor(self.high / step + 1e-9) + 1)]


def choose_scale(values: np.ndarray, bounds: Sequence[float] = (), integers: bool = False) -> tuple[Scale, np.ndarray]:
    """Chooses the axis and the bins of a histogram.

    Args:
        values: float64 (n,), finite, at least one.
        bounds: thresholds, which must be visible.
        integers: the values are integers; each gets a bin if there are few.

    Returns:
        The axis, and the borders of the bins, float64 (bins + 1,). Values beyond the first and the last border belong
        to the first and the last bin.
    """
    low, middle, high = np.percentile(values, [0.5, 50, 99.5]).tolist()
    low, high = min([low, *bounds]), max([high, *bounds])
    if integers and high - low < MAX_UNIT_BINS:
        low, high = math.floor(low) - 0.5, math.ceil(high) + 0.5
        return Scale(low, high, whole=True), np.arange(low, high + 0.5)
    positive = values[values > 0]
    if values.min() >= 0 and len(positive) and high > SKEW * max(middle, high / 1e6) and high > 0:
        smallest = [float(np.percentile(positive, 1)), *(bound for bound in bounds if bound > 0)]
        low = max(min(smallest), high / 1e6)
        scale = Scale(low / 1.05, high * 1.05, log=True)
        return scale, scale.edges()
    if high == low:
        low, high = low - 0.5, high + 0.5
    padding = (high - low) * 0.02
    scale = Scale(low if low >= 0 and low - padding < 0 else low - padding, high + padding, whole=integers)
    return scale, scale.edges()


@dataclass(frozen=True)
class Series:
    """The bars of one kind of rows.

    Attributes:
        name: shown in the legend.
        kind: CSS class.
        counts: of each bin.
    """

    name: str
    kind: str
    counts: Sequence[float]


@dataclass(frozen=True)
class Mark:
    """A threshold: a vertical line, and shade on the side whose rows are dropped.

    Attributes:
        value: of the bound.
        label: text at the line.
        drops: `below` or `above`; empty for no shade.
    """

    value: float
    label: str
    drops: str = ""


@dataclass(frozen=True)
class Plot:
    """Labels and size of a plot.

    Attributes:
        label: what the figure shows, read aloud instead of the picture.
        across: name and unit of the horizontal axis.
        up: name of the vertical axis.
        height: pixels of the drawing.
        upper: ticks of a second horizontal axis above the plot: value on the first one, and text.
        upper_label: name of that axis.
        movable: names of thresholds that the page can draw where they are moved to.
    """

    label: str
    across: str
    up: str = "pairs"
    height: int = HEIGHT
    upper: Sequence[tuple[float, str]] = ()
    upper_label: str = ""
    movable: Sequence[str] = ()


def number(value: float) -> str:
    """A number for an axis.

    >>> [number(x) for x in (0, 0.25, 1000, 12500, 2_000_000)]
    ['0', '0.25', '1,000', '12.5k', '2M']
    """
    size = abs(value)
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= max(unit, 9999.5):
            return f"{value / unit:.3g}{suffix}"
    if size and size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def svg(width: float, height: float, label: str, parts: Iterable[str], left: float = 0, top: float = 0) -> Markup:
    """Wraps the parts of a drawing, which are markup, into an SVG element with an accessible name."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:g} {top:g} {width:g} {height:g}" role="img" '
    return Markup(f'{head}aria-label="{escape(label)}">{"".join(parts)}</svg>')


def text(x: float, y: float, content: object, kind: str = "", anchor: str = "") -> str:
    """A text element; its content is escaped."""
    place = f' text-anchor="{anchor}"' if anchor else ""
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{css}{place}>{escape(content)}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> str:
    """A rectangle; `title` is shown when the pointer rests on it."""
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" class="{kind}"'
    return f"{shape}><title>{escape(title)}</title></rect>" if title else f"{shape}/>"


def line(x: float, y: float, to_x: float, to_y: float, kind: str) -> str:
    """A straight line."""
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" class="{kind}"/>'


@dataclass(frozen=True)
class _Frame:
    """The plot's rectangle and its two axes."""

    plot: Plot
    across: Scale
    up: Scale

    @property
    def bottom(self) -> float:
        return self.plot.height - BOTTOM

    @property
    def top(self) -> float:
        return TOP + UPPER if self.plot.upper else TOP

    def x(self, value: float) -> float:
        return LEFT + self.across.at(value) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.bottom - self.up.at(value) * (self.bottom - self.top)

    def axes(self) -> list[str]:
        """Grid, ticks and labels."""
        parts = []
        for tick in self.up.ticks(4):
            y = self.y(tick)
            parts += [line(LEFT, y, WIDTH - RIGHT, y, "grid"), text(LEFT - 6, y + 4, number(tick), "tick", "end")]
        for tick in self.across.ticks():
            x = self.x(tick)
            parts += [line(x, self.bottom, x, self.bottom + 4, "axis")]
            parts += [text(x, self.bottom + 17, number(tick), "tick", "middle")]
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts += [line(LEFT, self.bottom, WIDTH - RIGHT, self.bottom, "axis")]
        parts += [text(middle, self.plot.height - 6, self.plot.across, "label", "middle")]
        for value, name in self.plot.upper:
            x = self.x(value)
            parts += [line(x, self.top, x, self.top - 4, "axis"), text(x, self.top - 7, name, "tick", "middle")]
        if self.plot.upper:
            parts += [line(LEFT, self.top, WIDTH - RIGHT, self.top, "axis")]
            parts += [text(WIDTH - RIGHT, TOP - 6, self.plot.upper_label, "label", "end")]
        return [*parts, text(2, TOP - 11, self.plot.up, "label", "start")] if self.plot.up else parts

    def movable(self) -> list[str]:
        """The lines that the page's script moves, hidden until then."""
        place = f'data-left="{LEFT}" data-width="{WIDTH - LEFT - RIGHT}" x1="{LEFT}" x2="{LEFT}"'
        height = f'y1="{self.top}" y2="{self.bottom}"'
        return [f'<line class="moved" data-moved="{escape(name)}" {place} {height}/>' for name in self.plot.movable]

    def shade(self, mark: Mark) -> list[str]:
        """The side of a threshold whose rows are dropped."""
        x = self.x(mark.value)
        left, right = {"below": (LEFT, x), "above": (x, WIDTH - RIGHT)}.get(mark.drops, (x, x))
        return [rect(left, self.top, right - left, self.bottom - self.top, "shade")] if right - left > 0.5 else []

    def mark(self, mark: Mark) -> list[str]:
        """A threshold's line and label."""
        x = self.x(mark.value)
        right = x > (LEFT + WIDTH) * 0.6
        y = self.top + 12 if self.plot.upper else TOP - 8
        label = text(x + (-4 if right else 4), y, mark.label, "mark-label", "end" if right else "start")
        return [line(x, self.top - (0 if self.plot.upper else 6), x, self.bottom, "mark"), label]


def histogram(
    plot: Plot, scale: Scale, edges: np.ndarray, series: Sequence[Series], marks: Sequence[Mark] = ()
) -> Markup:
    """Draws stacked bars, the first series at the bottom.

    Args:
        plot: labels.
        scale: the horizontal axis.
        edges: float64 (bins + 1,), the borders of the bins.
        series: counts of each kind of rows.
        marks: thresholds.
    """
    totals = np.sum([s.counts for s in series], axis=0)
    room = 1.2 if plot.upper and marks else 1.0  # for the labels of the marks, which are inside then
    frame = _Frame(plot, scale, Scale(0, room * max(float(totals.max()), 1)))
    parts = [*(part for mark in marks for part in frame.shade(mark)), *frame.axes()]
    for at, (left, right) in enumerate(pairwise(edges.tolist())):
        x, width = frame.x(left), frame.x(right) - frame.x(left)
        gap = min(1.0, width * 0.15)
        base, lines = 0.0, list[str]()
        for s in series:
            if count := s.counts[at]:
                top, below = frame.y(base + count), frame.y(base)
                parts.append(rect(x + gap / 2, top, width - gap, max(below - top, 0.6), s.kind))
                base += count
                lines.append(f"{s.name}: {count:,.0f}")
        if lines:
            unit = right - left == 1 and float(left + 0.5).is_integer()
            place = f"{left + 0.5:g}" if unit else f"{number(left)} – {number(right)}"
            parts.append(rect(x, frame.top, width, frame.bottom - frame.top, "hit", f"{place}\n" + "\n".join(lines)))
    for mark in marks:
        parts += frame.mark(mark)
    return svg(WIDTH, plot.height, plot.label, [*parts, *frame.movable()])


@dataclass(frozen=True)
class Line:
    """A line of a plot.

    Attributes:
        points: (x, y) of each.
        kind: CSS class.
        name: shown in the plot's corner; empty for none.
    """

    points: Sequence[tuple[float, float]]
    kind: str = "curve"
    name: str = ""


def curves(plot: Plot, lines: Sequence[Line], across: Scale, up: Scale) -> Markup:
    """Draws lines; the first one is on top and has the uppermost name."""
    frame = _Frame(plot, across, up)
    parts = frame.axes()
    for at, drawn in reversed(list(enumerate(lines))):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in drawn.points)
        parts.append(f'<polyline points="{path}" class="{drawn.kind}"/>')
        if drawn.name:
            y = frame.top + 12 + 18 * at
            parts.append(line(WIDTH - RIGHT - 22, y - 4, WIDTH - RIGHT, y - 4, drawn.kind))
            parts.append(text(WIDTH - RIGHT - 28, y, drawn.name, "label", "end"))
    return svg(WIDTH, plot.height, plot.label, parts)


def border(edges: np.ndarray, key: str, bound: float) -> float:
    """Returns the position of a threshold: between two integers if each has a bin, else its value.

    Args:
        edges: float64 (bins + 1,), the borders of the bins.
        key: `min`, `above`, `max` or `below`.
        bound: its value.
    """
    if edges[1] - edges[0] != 1 or edges[0] % 1 != 0.5 or bound % 1:
        return bound
    return bound - 0.5 if key in ("min", "below") else bound + 0.5


def heat_map(plot: Plot, across: Scale, up: Scale, counts: np.ndarray) -> Markup:
    """Draws counts of a plane as cells, in a stronger colour for more.

    Args:
        plot: labels.
        across, up: the axes.
        counts: (columns, rows), bins of equal width on both axes.
    """
    frame = _Frame(plot, across, up)
    x_edges, y_edges = across.edges(counts.shape[0]), up.edges(counts.shape[1])
    highest, parts = math.log1p(float(counts.max(initial=1))), frame.axes()
    for column, row in np.argwhere(counts > 0).tolist():
        count = float(counts[column, row])
        x, y = frame.x(x_edges[column]), frame.y(y_edges[row + 1])
        width, height = frame.x(x_edges[column + 1]) - x, frame.y(y_edges[row]) - y
        step = 1 + round(5 * math.log1p(count) / highest)
        where = f"{number(x_edges[column])} – {number(x_edges[column + 1])} × "
        where += f"{number(y_edges[row])} – {number(y_edges[row + 1])}: {count:,.0f}"
        parts.append(rect(x, y, width, height, f"heat{step}", where))
    return svg(WIDTH, plot.height, plot.label, parts)


@dataclass(frozen=True)
class Bar:
    """A horizontal bar.

    Attributes:
        label: at its left.
        value: its length.
        text: at its right.
        reference: where a tick is drawn to compare with; None for none.
        link: address that the label leads to.
    """

    label: str
    value: float
    text: str
    reference: float | None = None
    link: str = ""


def bars(label: str, rows: Sequence[Bar], longest: float = 0, kind: str = "kept", label_pixels: int = 130) -> Markup:
    """Draws horizontal bars, one below the other.

    Args:
        label: see `Plot`.
        rows: the bars.
        longest: value of a bar of full length; 0 for the largest of the values.
        kind: CSS class of the bars.
        label_pixels: width of the labels, which are cut to it; 0 puts each above its bar, for narrow screens.
    """
    above = 0 if label_pixels else 18
    pitch, thick = 20 + above, 12
    longest = longest or max([row.value for row in rows], default=1) or 1
    parts = []
    for at, row in enumerate(rows):
        y = at * pitch + 4 + above
        width = row.value / longest * BAR_PIXELS
        if above:
            name = text(0, y - 7, row.label, "name")
        else:
            name = text(label_pixels - 8, y + 10, clipped(row.label, label_pixels / LABEL_EM), "name", "end")
        parts.append(f'<a href="{escape(row.link)}">{name}</a>' if row.link else name)
        parts.append(rect(label_pixels, y, BAR_PIXELS, thick, "track"))
        parts.append(
            rect(label_pixels, y, max(width, 0.8 if row.value else 0), thick, kind, f"{row.label}: {row.text}")
        )
        if row.reference is not None:
            x = label_pixels + row.reference / longest * BAR_PIXELS
            parts.append(line(x, y - 3, x, y + thick + 3, "reference"))
        parts.append(text(label_pixels + BAR_PIXELS + 8, y + 10, row.text, "value"))
    return svg(label_pixels + BAR_PIXELS + VALUE_PIXELS, len(rows) * pitch + 6, label, parts)


def clipped(content: str, ems: float) -> str:
    """Cuts a text to a width, with an ellipsis."""
    if advance(content) <= ems:
        return content
    out, used = "", 1.0
    for character in content:
        used += advance(character)
        if used > ems:
            break
        out += character
    return f"{out}…"


def advance(content: str) -> float:
    """Width of a text in ems: Han characters are square, so no font needs to be measured."""
    return sum(1.0 if ord(character) >= CJK_START else LATIN_ADVANCE for character in content)


def dots(label: str, points: np.ndarray, colours: Sequence[str], titles: Sequence[str]) -> Markup:
    """Draws a dot for each point.

    Args:
        label: see `Plot`.
        points: float64 (n, 2), in 0 … 1.
        colours: CSS colour or variable of each dot.
        titles: shown when the pointer rests on a dot.
    """
    drawn = [
        f'<circle cx="{x * WIDTH:.0f}" cy="{y * WIDTH:.0f}" r="3" fill="{escape(colour)}">'
        + (f"<title>{escape(title)}</title></circle>" if title else "</circle>")
        for (x, y), colour, title in zip(points.tolist(), colours, titles, strict=True)
    ]
    return svg(WIDTH, WIDTH, label, drawn)


def standalone(drawing: str) -> str:
    """The text of an SVG file of a drawing: it has its colours with it."""
    head, _, rest = drawing.partition(">")
    style = (Path(__file__).with_name("templates") / "figure.css").read_text(encoding="utf-8")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}><style>{style}</style>{rest}\n'
