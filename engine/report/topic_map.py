"""The section of the report on topics: a map of the captions, and the words and pictures of each topic."""

from __future__ import annotations

import html
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from danqing.engine.report.topics import Topics
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import reading, verdicts_table

TOPICS_SHOWN = 12
"""Number of topics with pictures."""
MAX_DOTS = 4000
"""Maximum number of captions on the map."""
MAP_PIXELS = 480
"""Width and height of the map."""
GOLDEN_ANGLE = 137.508
"""Degrees between the hues of successive topics, which keeps the hues of any number of topics distinct."""


def topic_galleries(run: Run, topics: Topics | None) -> dict[str, list[int]]:
    """Returns the rows to show: heading → positions of the rows in the run."""
    shown = topics.topics[:TOPICS_SHOWN] if topics else ()
    position = _positions(run, [uid for topic in shown for uid in topic.examples]) if shown else {}
    return {
        f"topic {number}: {' '.join(topic.words)} ({topic.captions:,})": [position[uid] for uid in topic.examples]
        for number, topic in enumerate(shown)
    }


def _positions(run: Run, uids: list[str]) -> dict[str, int]:
    """Finds rows, a shard at a time: uid → position in the run."""
    found: dict[str, int] = {}
    start = 0
    for shard in run.shards:
        column = verdicts_table(run, shard.number, ["uid"])["uid"]
        rows = np.flatnonzero(pc.is_in(column, pa.array(uids)).to_numpy())
        found.update(zip(column.take(rows).to_pylist(), (start + rows).tolist(), strict=True))
        start += len(column)
    return found


def topic_section(run: Run, topics: Topics | None) -> Iterable[str]:
    """Yields the HTML of the section; nothing if `danqing topics` has not been run."""
    if topics is None:
        return
    yield "<h2>Topics</h2>"
    yield (
        f"<p>{len(topics.topics):,} topics among {topics.sample:,} of {topics.kept:,} kept captions; {topics.loose:,} "
        "captions are in none (grey).</p>"
    )
    yield f"<div class=row>{_map(run)}<div>{_table(topics)}</div></div>"


def _table(topics: Topics) -> str:
    rows = [
        f"<tr><td style='color:{_colour(number)}'>⬤<td class=n>{number}<td>{html.escape(' '.join(topic.words))}"
        f"<td class=n>{topic.captions:,}<td class=n>{topic.captions / topics.sample:.2%}"
        for number, topic in enumerate(topics.topics)
    ]
    return f"<table><tr><th><th>topic<th>words<th>captions<th>share{''.join(rows)}</table>"


def _map(run: Run) -> str:
    """Draws an SVG with a dot per caption at its UMAP coordinates; captions in no topic are below the others."""
    table = _read_map(run)
    rows = np.linspace(0, len(table) - 1, min(MAX_DOTS, len(table))).astype(int)
    topic = table["topic"].to_numpy()[rows]
    place = np.stack([table[axis].to_numpy()[rows] for axis in ("x", "y")], 1)
    low, high = np.percentile(place, [0.5, 99.5], axis=0)
    place = (0.02 + 0.96 * (place.clip(low, high) - low) / np.maximum(high - low, 1e-9)) * MAP_PIXELS
    dots = "".join(
        f"<circle cx={x:.0f} cy={y:.0f} r=2 fill='{_colour(number)}'/>"
        for number, (x, y) in sorted(zip(topic.tolist(), place.tolist(), strict=True), key=lambda dot: dot[0] >= 0)
    )
    return f"<svg width={MAP_PIXELS} height={MAP_PIXELS}>{dots}</svg>"


def _read_map(run: Run) -> pa.Table:
    path = run.folder / "topics.parquet"
    with reading(path, f"run `danqing topics {run.folder}`"):
        return pq.read_table(path)


def _colour(number: int) -> str:
    return f"hsl({number * GOLDEN_ANGLE % 360:.0f} 60% 45%)" if number >= 0 else "#c9d1db"
