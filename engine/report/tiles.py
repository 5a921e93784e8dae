"""The tiles of a run's report: the pairs that are shown, with thumbnails of their pictures."""

from __future__ import annotations

import base64
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from danqing.engine.core.columns import FEATURES
from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.criteria import Criterion, Exclusion, Redundancy, Threshold
from danqing.engine.recipe.reading import Recipe
from danqing.engine.report.figures import number
from danqing.engine.report.galleries import Place
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import scores_schema, scores_table, verdicts_table
from danqing.engine.sources import open_shard
from danqing.engine.stages.header import read_header
from danqing.engine.stages.opening import open_picture
from danqing.engine.write.output import max_pixels

THUMBNAIL_PIXELS, THUMBNAIL_QUALITY = 132, 72
"""Longest side and JPEG quality of a picture."""
MAX_CAPTION, MAX_PROBLEM = 120, 160
"""Characters of a caption and of an error that are shown."""
SAFETY_COLUMNS = frozenset({"unsafe_image", "unsafe_text", "unsafe_caption"})
"""Pictures of rows that fail a criterion of one of these are veiled."""


@dataclass(frozen=True)
class Tile:
    """One pair as it is shown.

    Attributes:
        key: of the pair.
        caption: as read, cut to `MAX_CAPTION`.
        lang: its language, as HTML names it.
        scores: what the gallery's criterion has of it.
        source: `data:` address of the thumbnail; empty if there is none.
        problem: why there is none.
        is_unsafe: whether the picture is veiled.
        instead: the pair that was kept in its place.
    """

    key: str
    caption: str
    lang: str
    scores: str
    source: str
    problem: str
    is_unsafe: bool
    instead: Tile | None = None


class Tiles:
    """Makes the tiles of rows; reads each shard once.

    Args:
        run: a decided run.
        recipe: the one it was decided with.
        places: the rows that will be shown.
    """

    def __init__(self, run: Run, recipe: Recipe, places: Iterable[Place]) -> None:
        self.run, self.recipe = run, recipe
        wanted = set(places)
        self.records = self._read_records(wanted)
        uids = [record["kept_instead"] for record in self.records.values() if record["kept_instead"]]
        self.place_of = positions(run, uids)
        others = set(self.place_of.values()) - wanted
        self.records |= self._read_records(others)
        self.pictures = _thumbnails(run, {place: self.records[place] for place in sorted(wanted | others)})

    def _read_records(self, places: set[Place]) -> dict[Place, dict[str, Any]]:
        rows: dict[int, list[int]] = defaultdict(list)
        for shard, row in sorted(places):
            rows[shard].append(row)
        names = dict.fromkeys(["key", "uid", "caption", "error", "language", *SAFETY_COLUMNS, *self.recipe.columns])
        found: dict[Place, dict[str, Any]] = {}
        for shard, here in rows.items():
            there = set(scores_schema(self.run, shard).names) - {FEATURES}
            records = scores_table(self.run, shard, [name for name in names if name in there]).take(pa.array(here))
            verdicts = verdicts_table(self.run, shard, ["dropped_by", "kept_instead", "distance"]).take(pa.array(here))
            for row, record, verdict in zip(here, records.to_pylist(), verdicts.to_pylist(), strict=True):
                found[shard, row] = record | verdict
        return found

    def tile(self, place: Place, criterion: Criterion | None = None) -> Tile:
        """The tile of a row, as the gallery of a criterion shows it."""
        record = self.records[place]
        source, problem = self.pictures[place]
        instead = self.place_of.get(record["kept_instead"]) if isinstance(criterion, (Redundancy, Exclusion)) else None
        return Tile(
            key=record["key"],
            caption=_cut(record.get("caption") or "", MAX_CAPTION),
            lang=language_of(record.get("language"), record.get("caption") or ""),
            scores=_scores(record, criterion),
            source=source,
            problem=_cut(problem, MAX_PROBLEM),
            is_unsafe=self._is_unsafe(record),
            instead=replace(self.tile(instead), scores="kept instead") if instead else None,
        )

    def tiles(self, places: Sequence[Place], criterion: Criterion | None = None) -> list[Tile]:
        """The tiles of rows."""
        return [self.tile(place, criterion) for place in places]

    def _is_unsafe(self, record: Mapping[str, Any]) -> bool:
        return any(
            isinstance(criterion, Threshold)
            and criterion.column in SAFETY_COLUMNS
            and (score := record.get(criterion.column)) is not None
            and not criterion.interval.holds(np.float64(score))
            for criterion in self.recipe.criteria
        )


def positions(run: Run, uids: Sequence[str]) -> dict[str, Place]:
    """Finds rows by uid, a shard at a time."""
    found: dict[str, Place] = {}
    wanted = pa.array(sorted(set(uids)), pa.string())
    for shard in run.shards if uids else ():
        column = verdicts_table(run, shard.number, ["uid"])["uid"]
        rows = np.flatnonzero(pc.is_in(column, wanted).to_numpy())
        for row, uid in zip(rows.tolist(), column.take(pa.array(rows)).to_pylist(), strict=True):
            found.setdefault(uid, (shard.number, row))
    return found


def language_of(code: str | None, caption: str) -> str:
    """The value of `lang` for a text: its code, or what its script says; `und` if that is not clear.

    >>> language_of(None, "一只橘猫"), language_of("en", "A cat"), language_of("<b>", "A cat")
    ('zh', 'en', 'und')
    """
    if code and re.fullmatch("[a-z]{2,3}", code):
        return code
    return "zh" if any("\u4e00" <= c <= "\u9fff" for c in caption) else "und"


def _scores(record: Mapping[str, Any], criterion: Criterion | None) -> str:
    if isinstance(criterion, Threshold):
        score = record.get(criterion.column)
        return "no score" if score is None else number(float(score))
    if criterion is not None:
        return "" if record["distance"] is None else f"distance {record['distance']:.3g}"
    return ""


def _cut(content: str, characters: int) -> str:
    return content if len(content) <= characters else f"{content[: characters - 1]}…"


def _thumbnails(run: Run, records: Mapping[Place, Mapping[str, Any]]) -> dict[Place, tuple[str, str]]:
    """Makes thumbnails: row → `data:` address, and why there is none."""
    rows: dict[int, list[int]] = defaultdict(list)
    for shard, row in records:
        rows[shard].append(row)
    limit, made = max_pixels(run), dict.fromkeys(records, ("", "not in the input any more"))
    shards = run.shards
    for shard, here in rows.items():
        try:
            for row, sample in open_shard(shards[shard], run.layout).samples_at(here):
                made[shard, row] = thumbnail(sample.image, records[shard, row]["error"], limit)
        except (DanqingError, OSError):  # the input was moved since it was scored
            continue
    return made


def thumbnail(image: bytes, error: str | None, limit: int) -> tuple[str, str]:
    """Makes a thumbnail.

    Args:
        image: the encoded picture.
        error: of the row.
        limit: `--max-pixels`; a picture with more is not decoded.

    Returns:
        The `data:` address, and why it is empty.
    """
    try:
        with open_picture(image, limit) as opened:
            opened.draft("RGB", (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            opened.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            picture = opened.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        buffer = io.BytesIO()
        Image.alpha_composite(white, picture).convert("RGB").save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", ""
    except Exception:  # some of these rows were dropped because their picture is broken
        return "", error or read_header(image, limit).error or "cannot be decoded"
