"""One run as the report shows it: its numbers, its tiles, and the lines of the header and the tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from danqing.engine.core.damage import read_damage
from danqing.engine.decide.funnel import Funnel
from danqing.engine.recipe.reading import Recipe, recipe_from_dict
from danqing.engine.report.numbers import Distribution, Numbers, collect
from danqing.engine.report.paper import paper_shares
from danqing.engine.report.rows import Sample, draw_sample
from danqing.engine.report.tiles import Tile, Tiles
from danqing.engine.report.topic_map import topic_map, topic_places, topic_rows
from danqing.engine.report.topics import Topics
from danqing.engine.run.folder import Run
from danqing.engine.score.settling import describe_engines
from danqing.engine.write.output import InputVerdicts, decision_digest

ERRORS_SHOWN, DAMAGE_SHOWN = 15, 20


def slug(name: str) -> str:
    """A criterion's name as an anchor and a file name.

    >>> slug("Alt text/2")
    'alt-text-2'
    """
    return re.sub(r"[^\w]+", "-", name.lower()).strip("-") or "criterion"


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "shard"), counted(2000, "shard")
    ('1 shard', '2,000 shards')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


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
        folder = f", in {shared_folder({str(shard.path.parent) for shard in shards})}" if shards else ""
        failed, damage = self.numbers.errors.total(), len(read_damage(self.run.folder))
        sampled = "all rows" if self.sample.is_whole else f"{len(self.sample.table):,} rows, chosen by hash"
        device = manifest.get("machine", {}).get("device")
        rate = f" ({self.funnel.collected / seconds:,.1f} pairs/s)" if seconds else ""
        return [
            ("Input", f"{counted(len(shards), 'shard')}, {size / 1e6:,.1f} MB{folder}"),
            ("Recipe", f"{self.recipe.name}, hash {decided.get('recipe_hash', '')}"),
            ("Scored", f"{times.get('started', 'unknown')}{f' on {device}' if device else ''}"),
            ("Time of scoring", f"{_duration(seconds)}{rate}" if seconds else "unknown"),
            ("Engine version", str(manifest.get("engine", "unknown"))),
            ("Rows with an error", f"{failed:,} ({failed / max(self.funnel.collected, 1):.2%})"),
            ("Damaged input", counted(damage, "place") if damage else "none"),
            ("Characteristics from", sampled),
        ]

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
                "hash": str(model.get("onnx", model["card"]))[:16],
                "engines": ", ".join(
                    f"{digest[:16]} ({counted(shards, 'shard')})" for digest, shards in engines.get(role, {}).items()
                ),
            }
            for role, model in self.run.manifest.get("models", {}).items()
        ]

    @cached_property
    def topics(self) -> dict[str, Any] | None:
        topics = self.found_topics
        if topics is None:
            return None
        summary = (
            f"{counted(len(topics.topics), 'topic')} of {topics.sample:,} captions, out of {topics.kept:,} kept ones; "
            f"{counted(topics.loose, 'caption')} in no topic."
        )
        galleries = [(heading, self.tiles.tiles(places)) for heading, places in self.topic_places.items()]
        return {
            "summary": summary,
            "map": topic_map(self.run, topics),
            "rows": topic_rows(topics),
            "galleries": galleries,
        }


def shared_folder(folders: Iterable[str]) -> str:
    """The folder that holds all folders, which may be addresses, or their number if there is none.

    >>> shared_folder(["s3://bucket/a/b", "s3://bucket/a/c"]), shared_folder(["s3://bucket/a", "/data"])
    ('s3://bucket/a', '2 folders')
    """
    parts = [folder.split("/") for folder in folders]
    shared = "/".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False)))
    return shared if shared.strip("/") and not shared.endswith(":/") else f"{len(parts):,} folders"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
