"""report.html and report.json: what a run kept and why, with pictures, in one self-contained page."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from danqing import __version__
from danqing.engine.core.damage import read_damage
from danqing.engine.core.files import commit
from danqing.engine.decide.funnel import Funnel
from danqing.engine.recipe.criteria import Criterion, Exclusion, Redundancy, Threshold
from danqing.engine.recipe.reading import Recipe, recipe_from_dict
from danqing.engine.report.characteristics import Figure, characteristics, text_quality
from danqing.engine.report.figures import Bar, Mark, Plot, Series, bars, border, histogram, standalone
from danqing.engine.report.galleries import Tile, Tiles
from danqing.engine.report.numbers import KINDS, Distribution, Numbers, collect, is_compared
from danqing.engine.report.page import json_in_html, template_text, write_page
from danqing.engine.report.paper import paper_shares
from danqing.engine.report.rows import SAMPLE_ROWS, Sample, draw_sample, units_of
from danqing.engine.report.topic_map import topic_map, topic_places, topic_rows
from danqing.engine.report.topics import Topics
from danqing.engine.run.folder import Run
from danqing.engine.score.settling import describe_engines
from danqing.engine.write.output import InputVerdicts, decision_digest, read_verdicts
from danqing.engine.write.products import stamp

REPORT, COMPARISON = "report", "comparison"
"""Names of the files of a report on one run, and of one on two."""
ERRORS_SHOWN, DAMAGE_SHOWN = 15, 20
GROUP_SIZES = (2, 3, 4, 8, 16, 64)
"""Smallest sizes of the bars of group sizes."""
COSINES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, -0.1, -0.2, -0.4, -0.6)
KIND_NAMES = {"kept": "kept", "dropped": "dropped by this criterion", "other": "dropped by another"}


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
    criteria = _criteria(views)
    sections = _sections(views)
    funnel = _funnel_figure(views)
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
        funnel_figure=funnel,
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
        _write_figures(figures, drawn)
    return page


def _write_figures(folder: Path, figures: Iterable[Figure]) -> None:
    for figure in figures:
        several = len(figure.drawings) > 1
        for letter, drawing in zip("ab", figure.drawings, strict=False):
            if drawing is not None:
                with commit(folder / f"{figure.name}{f'-{letter}' if several else ''}.svg", "w") as file:
                    file.write(standalone(drawing))


def slug(name: str) -> str:
    """A criterion's name as an anchor and a file name.

    >>> slug("Alt text/2")
    'alt-text-2'
    """
    return re.sub(r"[^\w]+", "-", name.lower()).strip("-") or "criterion"


@dataclass(frozen=True)
class FunnelLine:
    """One line of the table of the funnel."""

    anchor: str
    step: str
    rule: str
    left: int
    dropped: int
    share: float
    paper: str


class View:
    """One run as the page shows it.

    Args:
        run: a decided run.
        verdicts: its verdicts.
    """

    def __init__(self, run: Run, verdicts: list[InputVerdicts]) -> None:
        run.check_decided()
        self.run, self.verdicts = run, verdicts
        self.name = run.folder.resolve().name
        self.digest = decision_digest(run, verdicts)
        self.recipe: Recipe = recipe_from_dict(run.manifest["decided"]["recipe"], "run.json")
        self.funnel = Funnel.of(run)
        self.paper = paper_shares(self.funnel)
        self.found_topics = Topics.of(run, verdicts)
        self.sample: Sample = draw_sample(run, self.recipe, self.funnel.collected)

    def count(self, views: Sequence[View]) -> None:
        """Counts all rows, and makes the tiles of those that are shown."""
        self.numbers: Numbers = collect(
            self.run, self.recipe, self.sample, [view.sample for view in views], [view.recipe for view in views]
        )
        galleries = self.numbers.galleries
        self.shown = {at: galleries.chosen(at) for at in galleries.dropped}
        self.topic_places = topic_places(self.run, self.found_topics) if self.found_topics else {}
        places = [place for shown in self.shown.values() for several in shown.values() for place in several]
        places += [place for several in self.topic_places.values() for place in several]
        self.tiles = Tiles(self.run, self.recipe, [*places, *galleries.kept.places])

    @property
    def kept(self) -> list[Tile]:
        return self.tiles.tiles(self.numbers.galleries.kept.places)

    @property
    def distributions(self) -> dict[str, Distribution]:
        return {found.criterion.name: found for found in self.numbers.distributions}

    @cached_property
    def lines(self) -> list[FunnelLine]:
        return [
            FunnelLine(
                f"criterion-{slug(line.criterion)}",
                line.step,
                line.measured_rule,
                line.left,
                line.dropped,
                line.share,
                f"{self.paper[line.criterion][1]:.2%}" if line.criterion in self.paper else "",
            )
            for line in self.funnel.lines
        ]

    @property
    def facts(self) -> list[tuple[str, str]]:
        manifest, shards = self.run.manifest, self.run.shards
        times, decided = manifest.get("times", {}), manifest["decided"]
        seconds, size = times.get("score_seconds"), sum(shard.bytes for shard in shards)
        folders = {str(shard.path.parent) for shard in shards}
        failed, damage = self.numbers.errors.total(), len(read_damage(self.run.folder))
        sampled = "all rows" if self.sample.is_whole else f"{len(self.sample.table):,} rows, chosen by hash"
        device = manifest.get("machine", {}).get("device")
        rate = f" ({self.funnel.collected / seconds:,.1f} pairs/s)" if seconds else ""
        facts = [
            (
                "Input",
                f"{len(shards):,} shards, {size / 1e6:,.1f} MB, in {_shared_folder(folders)}" if shards else "none",
            ),
            ("Recipe", f"{self.recipe.name}, hash {decided.get('recipe_hash', '')}"),
            ("Scored", f"{times.get('started', 'unknown')}{f' on {device}' if device else ''}"),
            ("Time of scoring", f"{_duration(seconds)}{rate}" if seconds else "unknown"),
            ("Engine version", str(manifest.get("engine", "unknown"))),
            ("Rows with an error", f"{failed:,} ({failed / max(self.funnel.collected, 1):.2%})"),
            ("Damaged input", f"{damage:,} places" if damage else "none"),
            ("Characteristics are of", sampled),
        ]
        return facts

    @property
    def notes(self) -> list[str]:
        return [
            f"Scored by several engines: {line}." for line in describe_engines(self.run.manifest.get("engines", {}))
        ]

    @property
    def errors(self) -> list[tuple[str, int]]:
        return sorted(self.numbers.errors.items(), key=lambda entry: (-entry[1], entry[0]))[:ERRORS_SHOWN]

    @property
    def damage(self) -> list[str]:
        return [str(entry) for entry in read_damage(self.run.folder)][:DAMAGE_SHOWN]

    @property
    def models(self) -> list[dict[str, str]]:
        engines = self.run.manifest.get("engines", {})
        return [
            {
                "role": role.replace("_", " "),
                "name": model["name"],
                "file": str(model.get("onnx", model["card"]))[:16],
                "engines": ", ".join(
                    f"{digest[:16]} ({shards:,} shards)" for digest, shards in engines.get(role, {}).items()
                ),
            }
            for role, model in self.run.manifest.get("models", {}).items()
        ]

    @cached_property
    def topics(self) -> dict[str, Any] | None:
        topics = self.found_topics
        if topics is None:
            return None
        told = (
            f"{len(topics.topics):,} topics among {topics.sample:,} of {topics.kept:,} kept captions; {topics.loose:,} "
            "captions are in none."
        )
        galleries = [(heading, self.tiles.tiles(places)) for heading, places in self.topic_places.items()]
        return {"told": told, "map": topic_map(self.run, topics), "rows": topic_rows(topics), "galleries": galleries}


def _shared_folder(folders: set[str]) -> str:
    try:
        return os.path.commonpath(folders)
    except ValueError:  # addresses and local paths
        return f"{len(folders):,} folders"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _funnel_figure(views: Sequence[View]) -> Figure:
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
        drawings.append(bars("Pairs left after each criterion", rows, longest=1, label_pixels=205))
    return Figure("funnel", "Funnel", drawings)


@dataclass(frozen=True)
class CriterionItem:
    """One criterion as the page shows it."""

    name: str
    anchor: str
    title: str
    rule: str
    told: str
    figure: Figure | None
    what_if: dict[str, Any] | None
    explanation: str
    galleries: list[tuple[str, list[tuple[str, list[Tile]]]]]


def _criteria(views: Sequence[View]) -> list[CriterionItem]:
    criteria = {criterion.name: criterion for view in views for criterion in view.recipe.criteria}
    return [_criterion(views, criterion) for criterion in criteria.values()]


def _criterion(views: Sequence[View], criterion: Criterion) -> CriterionItem:
    name = criterion.name
    lines = [next((line for line in view.funnel.lines if line.criterion == name), None) for view in views]
    distributions = [view.distributions.get(name) for view in views]
    told = []
    for letter, line in zip("AB", lines, strict=False):
        if line:
            which = f"{letter}: " if len(views) > 1 else ""
            told.append(
                f"{which}{line.left + line.dropped:,} pairs reached it, {line.dropped:,} dropped ({line.share:.2%})"
            )
    rules = [line.measured_rule for line in lines if line]
    galleries = []
    for view in views:
        at = next((at for at, own in enumerate(view.recipe.criteria) if own.name == name), None)
        shown = view.shown[at] if at is not None else {}
        tiles = [(title, view.tiles.tiles(places, criterion)) for title, places in shown.items()]
        galleries.append((view.name, tiles))
    single = distributions[0] if len(views) == 1 else None
    return CriterionItem(
        name,
        f"criterion-{slug(name)}",
        criterion.step or name,
        " · ".join(dict.fromkeys(rules)) or criterion.rule,
        "; ".join(told),
        _criterion_figure(name, distributions) if any(distributions) else None,
        single.what_if() if single else None,
        _explanation(criterion, views[0]) if len(views) == 1 else "",
        galleries,
    )


def _explanation(criterion: Criterion, view: View) -> str:
    if not is_compared(criterion):
        return ""
    sizes = view.numbers.group_sizes
    if not sizes or not isinstance(criterion, Redundancy):
        return "The distance of each dropped pair to the one that was kept in its place."
    groups, largest = sizes.total(), max(sizes)
    return (
        "The distance of each dropped pair to the one that was kept in its place; in a chain of near pairs it can "
        f"exceed the threshold. Near-duplicates of the whole run: {groups:,} groups, the largest of {largest:,} pairs. "
        f"Another distance needs another search: danqing decide --set {criterion.name}.within=…"
    )


def _criterion_figure(name: str, distributions: Sequence[Distribution | None]) -> Figure:
    drawings = [_distribution(found, len(distributions) == 1) if found else None for found in distributions]
    return Figure(f"criterion-{slug(name)}", name, drawings)


def _distribution(found: Distribution, movable: bool) -> Markup:
    criterion, upper = found.criterion, []
    if isinstance(criterion, Threshold):
        across = units_of(criterion.column)
        sides = {"min": "below", "above": "below", "max": "above", "below": "above"}
        signs = {"min": "≥", "above": ">", "max": "≤", "below": "<"}
        bounds = criterion.interval.to_dict()
        marks = [
            Mark(border(found.edges, key, value), f"{signs[key]} {value:.4g}", sides[key])
            for key, value in bounds.items()
        ]
        keys = list(bounds) if movable and len(found.candidates) else []
        if criterion.column == "alignment_distance":  # of unit vectors: d² = 2 - 2 cos
            at = [(math.sqrt(2 - 2 * cosine), f"{cosine:g}") for cosine in COSINES]
            upper = [tick for tick in at if found.scale.low <= tick[0] <= found.scale.high]
    else:
        assert isinstance(criterion, (Redundancy, Exclusion))
        across, keys = f"distance of {criterion.column} to the pair kept instead", []
        marks = [Mark(criterion.within, f"within {criterion.within:g}")] if criterion.within else []
    series = [Series(KIND_NAMES[kind], kind, counts) for kind, counts in zip(KINDS, found.counts.tolist(), strict=True)]
    plot = Plot(
        f"{criterion.name}: histogram of {across}; {criterion.rule}",
        across,
        upper=upper,
        upper_label="cosine",
        movable=keys,
    )
    return histogram(plot, found.scale, found.edges, series, marks)


@dataclass(frozen=True)
class Section:
    """A section of figures."""

    anchor: str
    title: str
    lead: str
    figures: Sequence[Figure]


def _sections(views: Sequence[View]) -> list[Section]:
    samples = [view.sample for view in views]
    whole = all(sample.is_whole for sample in samples)
    basis = "" if whole else f" Of a sample of about {SAMPLE_ROWS:,} pairs, chosen by hash."
    duplicates = [_group_figure(views)] if any(view.numbers.group_sizes for view in views) else []
    sections = [
        Section(
            "characteristics",
            "Characteristics",
            f"What the pairs are, whatever the criteria say of them: kept pairs, and dropped ones above them.{basis}",
            [*characteristics(samples), *duplicates],
        ),
        Section(
            "text",
            "Text quality",
            f"Words of the captions as jieba segments them; nouns, verbs and adjectives without stop words.{basis}",
            text_quality(samples),
        ),
    ]
    return [section for section in sections if section.figures]


def _group_figure(views: Sequence[View]) -> Figure:
    drawings, numbers = [], []
    for view in views:
        sizes = view.numbers.group_sizes
        rows = []
        for low, high in zip(GROUP_SIZES, (*GROUP_SIZES[1:], math.inf), strict=True):
            groups = sum(count for size, count in sizes.items() if low <= size < high)
            label = (
                f"{low}" if high == low + 1 else f"{low} and more" if high == math.inf else f"{low} – {high - 1:.0f}"
            )
            if low <= max(sizes, default=0):
                rows.append(Bar(label, groups, f"{groups:,}"))
        drawings.append(bars("Groups of near-duplicates by number of pairs", rows, label_pixels=100) if sizes else None)
        numbers.append({str(size): count for size, count in sorted(sizes.items())})
    return Figure(
        "group-sizes", "Groups of near-duplicates", drawings, ["groups by their number of pairs"] * len(views), numbers
    )


def _contents(sections: Sequence[Section], views: Sequence[View]) -> list[tuple[str, str]]:
    topics = [("topics", "Topics")] if views[0].found_topics else []
    return [
        ("funnel", "Funnel"),
        ("criteria", "Criteria" if len(views) > 1 else "Criteria and what-if"),
        *((section.anchor, section.title) for section in sections),
        *topics,
        ("kept", "Kept pairs"),
        ("errors", "Errors, damage and models"),
    ]


def _what_if(view: View) -> dict[str, Any]:
    """What the page's script needs to move thresholds; see `Distribution.what_if`."""
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
    return {
        "criteria": criteria,
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
