"""Tables of evaluations and probes, and the picture of a probe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from danqing import __version__
from danqing.engine.core.memory import DEFAULT_MAX_PIXELS
from danqing.engine.evaluate.metrics import Interval
from danqing.engine.evaluate.probe import Probe
from danqing.engine.evaluate.results import Comparison, Differences, Evaluation
from danqing.engine.evaluate.tables import known
from danqing.engine.report.figures import Bar, bars
from danqing.engine.report.page import write_page
from danqing.engine.report.terminal import console
from danqing.engine.report.tiles import thumbnail

LABEL_PIXELS = 210
"""Width of the names of models beside the bars of a probe."""


def print_evaluations(found: Sequence[Evaluation], compared: Comparison) -> None:
    """Prints every metric in percent, beside the paper's figures, then the paper's averages.

    Args:
        found: the models.
        compared: what they are compared with, and the differences.
    """
    reference = compared.reference
    outside = reference is not None and all(evaluation is not reference for evaluation in found)
    columns: list[tuple[Evaluation, Differences | None]] = [(reference, None)] if reference and outside else []
    columns += zip(found, compared.differences, strict=True)
    papers = list(
        dict.fromkeys(name for row in found[0].rows if (paper := known(row.dataset)) for name in paper.figures)
    )
    caption = "percent; [ ]: 95 % of paired bootstrap samples" if reference else "percent"
    table = Table(box=box.SIMPLE_HEAD, caption=caption)
    table.add_column("data set", overflow="fold")
    table.add_column("metric", no_wrap=True)
    for evaluation, differences in columns:
        table.add_column(escape(evaluation.model), justify="right", overflow="fold")
        if reference and differences is not None:
            table.add_column(f"less {escape(reference.model)}", justify="right", overflow="fold")
    for name in papers:
        table.add_column(f"paper {name}", justify="right", style="dim", overflow="fold")
    for row in found[0].rows:
        paper = known(row.dataset)
        for number, metric in enumerate(row.metrics):
            cells = ["" if number else row.dataset, metric]
            for evaluation, differences in columns:
                other = evaluation.row(row.dataset)
                cells.append(_percent(other.metrics.get(metric)) if other else "")
                if differences is not None:
                    cells.append(_interval(differences.get(row.dataset, {}).get(metric)))
            figures = paper.figures if paper and paper.metric == metric else {}
            cells += [f"{figures[name]:.1f}" if name in figures else "" for name in papers]
            table.add_row(*map(escape, cells))
    console.print(table)
    for line in average_lines(found):
        console.print(line, markup=False)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _interval(found: Interval | None) -> str:
    return f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]" if found else ""


def average_lines(found: Sequence[Evaluation]) -> Iterator[str]:
    """Yields a line for each of the paper's averages and model: ours, what is missing, and the paper's figures."""
    for evaluation in found:
        for average in evaluation.averages:
            of = len(average.found) + len(average.missing)
            if average.value is None:
                ours = f"{len(average.found)} of {of} sets; missing: {', '.join(average.missing) or 'a metric'}"
            else:
                ours = _percent(average.value)
            paper = ", ".join(f"{name} {value}" for name, value in average.figures.items())
            yield f"{evaluation.model}: {average.title}: {ours}" + (f" (paper: {paper})" if paper else "")


def print_probe(found: Probe) -> None:
    """Prints the cosine of every phrase and picture, a column for each model."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("text", "picture"):
        table.add_column(heading, overflow="fold")
    for model in found.models:
        table.add_column(escape(model), justify="right", overflow="fold")
    for t, text in enumerate(found.texts):
        for p, picture in enumerate(found.pictures):
            cosines = (f"{value:.3f}" for value in found.cosines[:, t, p])
            table.add_row(escape(text) if p == 0 else "", escape(picture.name), *cosines)
    console.print(table)


def write_probe(path: Path, found: Probe) -> None:
    """Writes a page: below each phrase the pictures, each with a bar for the cosine of every model.

    Bars begin at a cosine of 0, and the longest is the largest cosine of the page.
    """
    longest = float(max(found.cosines.max(), 0.01))
    sources = [thumbnail(picture.read_bytes(), None, DEFAULT_MAX_PIXELS)[0] for picture in found.pictures]
    phrases = []
    for t, text in enumerate(found.texts):
        tiles = []
        for p, picture in enumerate(found.pictures):
            rows = [
                Bar(model, max(float(value), 0.0), f"{value:.3f}")
                for model, value in zip(found.models, found.cosines[:, t, p], strict=True)
            ]
            drawing = bars(f"cosine of {text} and {picture.name}", rows, longest, label_pixels=LABEL_PIXELS)
            tiles.append({"name": picture.name, "source": sources[p], "drawing": drawing})
        phrases.append({"text": text, "tiles": tiles})
    write_page(path, "probe.html", "Phrases and pictures", phrases=phrases, version=__version__)
