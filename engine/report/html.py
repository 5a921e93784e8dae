"""report.html and report.json: what a run kept and why, with pictures, in one self-contained page."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from danqing import __version__
from danqing.engine.core.damage import read_damage
from danqing.engine.core.escape import escaped
from danqing.engine.core.files import commit
from danqing.engine.recipe.criteria import Redundancy, Threshold
from danqing.engine.recipe.reading import Recipe
from danqing.engine.report.balance import balance_section
from danqing.engine.report.characteristics import characteristics, text_quality
from danqing.engine.report.criterion import criterion_items
from danqing.engine.report.figures import Bar, Figure, bars, standalone
from danqing.engine.report.numbers import KINDS, Distribution, is_compared
from danqing.engine.report.page import json_in_html, template_text, write_page
from danqing.engine.report.recaptions import recaptions_section
from danqing.engine.report.rows import SAMPLE_ROWS
from danqing.engine.report.section import Section
from danqing.engine.report.view import View, slug
from danqing.engine.run.folder import Run
from danqing.engine.write.output import InputVerdicts, read_verdicts
from danqing.engine.write.products import stamp

REPORT, COMPARISON = "report", "comparison"
"""Names of the files of a report on one run, and of one on two."""
FUNNEL_LABEL_PIXELS = 262
GROUP_SIZES = (2, 3, 4, 8, 16, 64)
"""Smallest sizes of the bars of group sizes."""


def write_report(
    run: Run,
    verdicts: list[InputVerdicts] | None = None,
    other: Run | None = None,
    output: Path | None = None,
    figures: Path | None = None,
) -> Path:
    """Writes the report of a decided run, or of two side by side: a page, and JSON with its numbers.

    Args:
        run: the run; its topics are shown if they have been found.
        verdicts: its verdicts (`read_verdicts`), if they have been read.
        other: a run to show beside it.
        output: folder of the files; None for the run's.
        figures: folder for each figure as SVG; None for none.

    Returns:
        The page.
    """
    verdicts = read_verdicts(run) if verdicts is None else verdicts
    views = [View(run, verdicts), *([View(other, read_verdicts(other))] if other else [])]
    for view in views:
        view.count(views)
    folder, name = output or run.folder, COMPARISON if other else REPORT
    criteria = criterion_items(views)
    sections = [section for make in SECTIONS if (section := make(views))]
    funnel, narrow_funnel = _funnel_figure(views, FUNNEL_LABEL_PIXELS), _funnel_figure(views, 0)
    page = folder / f"{name}.html"
    what_if = None if other else _what_if(views[0])
    write_page(
        page,
        "report.html",
        " and ".join(view.name for view in views),
        subtitle="Comparison of two runs of DanQing Engine" if other else "Report of a run of DanQing Engine",
        runs=views,
        contents=_contents(sections, views),
        has_paper=any(view.paper for view in views),
        funnel_figures={"broad": funnel, "narrow": narrow_funnel},
        criteria=criteria,
        sections=sections,
        what_if=json_in_html(what_if) if what_if else None,
        script=template_text("script.js"),
        json_name=f"{name}.json",
        version=__version__,
        stamp=Markup(stamp(views[0].digest)),
    )
    drawn = [funnel, *(item.figure for item in criteria if item.figure), *(f for s in sections for f in s.figures)]
    content = [_numbers(view, at, sections) for at, view in enumerate(views)]
    with commit(folder / f"{name}.json", "w") as file:
        file.write(json.dumps({"runs": content} if other else content[0], ensure_ascii=False) + "\n")
    if figures:
        write_figures(figures, drawn)
    return page


def write_figures(folder: Path, figures: Iterable[Figure]) -> None:
    """Writes each drawing of figures as SVG; those of two runs have `-a` and `-b` in their names."""
    for figure in figures:
        several = len(figure.drawings) > 1
        for letter, drawing in zip("ab", figure.drawings, strict=False):
            if drawing is not None:
                with commit(folder / f"{figure.name}{f'-{letter}' if several else ''}.svg", "w") as file:
                    file.write(escaped(standalone(drawing)))


def _funnel_figure(views: Sequence[View], label_pixels: int) -> Figure:
    drawings = []
    for view in views:
        collected = max(view.funnel.collected, 1)
        rows = [
            Bar(
                line.step,
                line.left / collected,
                f"{line.left:,}",
                view.paper[line.criterion][0] if line.criterion in view.paper else None,
                f"#criterion-{slug(line.criterion)}",
            )
            for line in view.funnel.lines
        ]
        rows.insert(0, Bar("collected", 1.0 if view.funnel.collected else 0.0, f"{view.funnel.collected:,}"))
        drawings.append(bars("Pairs left after each criterion", rows, longest=1, label_pixels=label_pixels))
    return Figure("funnel", "Funnel", drawings)


def _characteristics_section(views: Sequence[View]) -> Section | None:
    duplicates = [_group_figure(views)] if any(view.numbers.group_sizes for view in views) else []
    lead = f"Properties of the pairs. In histograms, dropped pairs are stacked on kept ones.{_basis(views)}"
    figures = [*characteristics([view.sample for view in views]), *duplicates]
    return Section("characteristics", "Characteristics", lead, figures) if figures else None


def _text_section(views: Sequence[View]) -> Section | None:
    lead = f"Content words are nouns, verbs and adjectives without stop words, as jieba finds them.{_basis(views)}"
    figures = text_quality([view.sample for view in views])
    return Section("text", "Text quality", lead, figures) if figures else None


def _topics_section(views: Sequence[View]) -> Section | None:
    maps = [view.topics["map"] if view.topics else None for view in views]
    note = "Each dot is a caption; similar captions are near each other. Grey dots are in no topic."
    figure = Figure("topics", "Map", maps, [note] * len(views))
    return Section("topics", "Topics", figures=[figure], template="topics.html") if any(maps) else None


SECTIONS: tuple[Callable[[Sequence[View]], Section | None], ...] = (
    _characteristics_section,
    _text_section,
    balance_section,
    _topics_section,
    recaptions_section,
)
"""Make the sections between the criteria and the kept pairs, in the order of the page; None: nothing to show."""


def _basis(views: Sequence[View]) -> str:
    whole = all(view.sample.is_whole for view in views)
    return "" if whole else f" From a sample of about {SAMPLE_ROWS:,} pairs, chosen by hash."


def _group_figure(views: Sequence[View]) -> Figure:
    drawings, notes, numbers = [], [], []
    for view in views:
        sizes, share = view.numbers.group_sizes, view.numbers.groups_share
        rows = []
        for low, high in zip(GROUP_SIZES, (*GROUP_SIZES[1:], math.inf), strict=True):
            groups = sum(count for size, count in sizes.items() if low <= size < high)
            label = (
                f"{low}" if high == low + 1 else f"{low} and more" if high == math.inf else f"{low} – {high - 1:.0f}"
            )
            if low <= max(sizes, default=0):
                rows.append(Bar(label, groups, f"{groups:,}"))
        drawings.append(bars("Groups of near-duplicates by number of pairs", rows, label_pixels=100) if sizes else None)
        which = "groups" if share == 1 else f"{share:.2%} of the groups, chosen by hash,"
        notes.append(f"{which} by their number of pairs")
        numbers.append({str(size): count for size, count in sorted(sizes.items())})
    return Figure("group-sizes", "Groups of near-duplicates", drawings, notes, numbers)


def _contents(sections: Sequence[Section], views: Sequence[View]) -> list[tuple[str, str]]:
    return [
        ("funnel", "Funnel"),
        ("criteria", "Criteria" if len(views) > 1 else "Criteria and what-if"),
        *((section.anchor, section.title) for section in sections),
        ("kept", "Kept pairs"),
        ("errors", "Errors, damage and models"),
    ]


def _what_if(view: View) -> dict[str, Any]:
    """Data with which the page's script moves thresholds; see `Distribution.what_if`."""
    criteria = {}
    for found in view.numbers.distributions:
        if content := found.what_if():
            name = found.criterion.name
            content["settings"] = {key: shlex.quote(f"{name}.{key}") for key in content["bounds"]}
            criteria[name] = content
    manifest = view.run.manifest
    same = manifest["recipe"] == manifest["decided"]["recipe"]
    changed = [] if same else changed_bounds(view.run.recipe, view.recipe)
    given = "".join(f" --set {shlex.quote(setting)}" for setting in changed)
    joint = view.numbers.joint
    return {
        "criteria": criteria,
        "joint": joint.to_dict(view.recipe.criteria) if joint else None,
        "compares": any(map(is_compared, view.recipe.criteria)),
        "folder": shlex.quote(view.name),
        "name": view.name,
        "given": given,
    }


def changed_bounds(scored: Recipe, decided: Recipe) -> list[str]:
    """The `--set` values that lead from the recipe that a run was scored with to the one it was decided with.

    `danqing decide` starts from the former. Of a recipe with other criteria, only the bounds are named.
    """
    before = {criterion.name: criterion for criterion in scored.criteria}
    found = []
    for criterion in decided.criteria:
        own = before.get(criterion.name)
        if isinstance(criterion, Threshold) and isinstance(own, Threshold):
            known = own.interval.to_dict()
            bounds = criterion.interval.to_dict()
            found += [f"{criterion.name}.{key}={bound:g}" for key, bound in bounds.items() if known.get(key) != bound]
        elif isinstance(criterion, Redundancy) and isinstance(own, Redundancy) and criterion.within != own.within:
            found.append(f"{criterion.name}.within={criterion.within:g}")
    return found


def _numbers(view: View, at: int, sections: Sequence[Section]) -> dict[str, Any]:
    """The content of report.json for one run."""
    manifest = view.run.manifest
    return {
        "name": view.name,
        "engine": manifest.get("engine"),
        "recipe": {"name": view.recipe.name, "hash": manifest["decided"].get("recipe_hash")},
        "times": manifest.get("times", {}),
        "models": manifest.get("models", {}),
        "engines": manifest.get("engines", {}),
        "input": {"shards": len(view.run.shards), "bytes": sum(shard.bytes for shard in view.run.shards)},
        "funnel": view.funnel.to_dict(),
        "paper": {name: {"left": left, "dropped": dropped} for name, (left, dropped) in view.paper.items()},
        "errors": dict(sorted(view.numbers.errors.items())),
        "damage": [asdict(entry) for entry in read_damage(view.run.folder)],
        "sample": {"rows": len(view.sample.table), "of": view.sample.rows},
        "criteria": {found.criterion.name: _criterion_numbers(found) for found in view.numbers.distributions},
        "figures": {
            figure.name: figure.numbers[at] for section in sections for figure in section.figures if figure.numbers
        },
    }


def _criterion_numbers(found: Distribution) -> dict[str, Any]:
    counts: Mapping[str, list[int]] = dict(zip(KINDS, found.counts.tolist(), strict=True))
    return {
        "rule": found.criterion.rule,
        "axis": "logarithmic" if found.scale.log else "linear",
        "edges": [float(edge) for edge in found.edges],
        **counts,
        "what_if": found.what_if(),
    }
