"""Tables (CSV, JSON lines) of captions that name their picture files, as Hugging Face's `metadata.csv` does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from danqing.engine.sources.inputs import Shard
from danqing.engine.sources.sample import PROBLEM, Layout, Sample, choose_column, from_record
from danqing.engine.sources.tables import Record, records


class ListedShard:
    """Rows of a table; the pictures' names are relative to its folder. A row that cannot be read costs itself."""

    damage: str | None = None

    def __init__(self, shard: Shard, layout: Layout) -> None:
        rows = listed(shard.path)
        names = list(dict.fromkeys(itertools.chain.from_iterable(record for record, _ in rows[:1000])))
        self.image = choose_column(shard.path, names, layout.image_keys, "picture", "--image-key")
        self.caption = choose_column(shard.path, names, layout.caption_keys, "caption", "--caption-key")
        self.shard = shard
        self.rows = rows[shard.span]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Sample]:
        for row, (record, problem) in enumerate(self.rows):
            key = self.shard.key(row)
            if problem is None:
                yield from_record(record, self.image, self.caption, self.shard.path.parent, key)
            else:
                yield Sample(key, b"", "", "", {PROBLEM: f"{self.shard.path}: {problem}"})


@lru_cache(1)  # every shard of a long table asks for it
def listed(path: Path) -> tuple[Record, ...]:
    """The rows of the table, each with what is wrong with it, if anything."""
    return tuple(records(path))
