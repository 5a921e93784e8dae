"""Tables of captions (CSV, JSON lines) that name their picture files, as Hugging Face's `metadata.csv` does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from danqing.engine.core.damage import Damage
from danqing.engine.sources.base import Source
from danqing.engine.sources.inputs import Shard
from danqing.engine.sources.records import TEXT_SUFFIXES, TextRows, read_records
from danqing.engine.sources.sample import Layout, Sample, choose_column, from_record
from danqing.engine.sources.text import UTF8

NAMED_ROWS = 1000
"""The columns are those of the first rows: JSON lines may leave a field out where it has no value."""


class TextTable(Source):
    """Rows of a table; names of pictures are relative to its folder. A row that cannot be read fails, not the table."""

    suffixes = TEXT_SUFFIXES
    is_table = True

    def __init__(self, shard: Shard, layout: Layout) -> None:
        table = read_rows(shard.path, layout.encoding)
        names = list(dict.fromkeys(itertools.chain.from_iterable(record for record, _ in table.rows[:NAMED_ROWS])))
        self.image = choose_column(shard.path, names, layout.image_keys, "picture", "--image-key")
        self.caption = choose_column(shard.path, names, layout.caption_keys, "caption", "--caption-key")
        self.shard, self.layout = shard, layout
        self.rows = table.rows[shard.span]
        if shard.span.stop in (None, len(table.rows)):  # the last shard of the table
            self.damage += [Damage.at(shard.path, place, problem) for place, problem in table.damage]
        if shard.first == 0 and table.encoding != UTF8:
            self.encodings[table.encoding] += 1

    @classmethod
    def pieces(cls, path: Path, layout: Layout) -> list[tuple[int, int]]:
        rows = len(read_rows(path, layout.encoding).rows)
        return [(1, path.stat().st_size // max(rows, 1))] * rows

    @classmethod
    def clear_cache(cls) -> None:
        read_rows.cache_clear()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Sample]:
        for row, (record, problem) in enumerate(self.rows):
            key, folder = self.shard.key(row), self.shard.path.parent
            if problem is None:
                yield from_record(record, self.image, self.caption, folder, key, self.layout.follow_links)
            else:
                yield Sample(key, b"", "", "", error=f"{self.shard.path}: {problem}")


@lru_cache(1)  # all shards of a long table need the same rows
def read_rows(path: Path, encoding: str) -> TextRows:
    """Reads a table (`read_records`)."""
    return read_records(path, encoding)
