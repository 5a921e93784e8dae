"""The topics of a run as its report shows them: a map of the captions, and the words and pictures of each topic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup

from danqing.engine.report.figures import dots
from danqing.engine.report.galleries import Place
from danqing.engine.report.tiles import positions
from danqing.engine.report.topics import Topics
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import reading

TOPICS_SHOWN = 12
"""Number of topics with pictures."""
MAX_DOTS = 4000
"""Maximum number of captions on the map."""
GOLDEN_ANGLE = 137.508
"""Degrees between the hues of successive topics, which keeps the hues of any number of topics distinct."""


@dataclass(frozen=True)
class TopicRow:
    """One line of the table of topics."""

    number: int
    words: str
    captions: int
    share: float
    colour: str


def topic_rows(topics: Topics) -> list[TopicRow]:
    """The table of topics."""
    return [
        TopicRow(number, " ".join(topic.words), topic.captions, topic.captions / topics.sample, colour_of(number))
        for number, topic in enumerate(topics.topics)
    ]


def topic_places(run: Run, topics: Topics) -> dict[str, list[Place]]:
    """The rows to show: heading → rows."""
    shown = topics.topics[:TOPICS_SHOWN]
    place = positions(run, [uid for topic in shown for uid in topic.examples])
    return {
        f"topic {number}: {' '.join(topic.words)} ({topic.captions:,})": [place[uid] for uid in topic.examples]
        for number, topic in enumerate(shown)
    }


def topic_map(run: Run, topics: Topics) -> Markup:
    """Draws a dot per caption at its UMAP coordinates; captions in no topic are below the others."""
    path = run.folder / "topics.parquet"
    with reading(path, f"run `danqing topics {run.folder}`"):
        table = pq.read_table(path)
    rows = np.linspace(0, len(table) - 1, min(MAX_DOTS, len(table))).astype(int)
    topic = table["topic"].to_numpy()[rows]
    place = np.stack([table[axis].to_numpy()[rows] for axis in ("x", "y")], 1)
    low, high = np.percentile(place, [0.5, 99.5], axis=0)
    place = 0.02 + 0.96 * (place.clip(low, high) - low) / np.maximum(high - low, 1e-9)
    order = np.argsort(topic >= 0, kind="stable")
    numbers = topic[order].tolist()
    titles = [" ".join(topics.topics[number].words[:4]) if number >= 0 else "" for number in numbers]
    label = f"Map of {len(rows):,} captions; colours are topics"
    return dots(label, place[order], [colour_of(number) for number in numbers], titles)


def colour_of(number: int) -> str:
    """The colour of a topic, as CSS; -1 for captions in no topic."""
    return f"hsl({number * GOLDEN_ANGLE % 360:.0f} 60% 50%)" if number >= 0 else "#9aa4b288"
