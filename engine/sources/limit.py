"""The first rows of a shard, for a run with a limit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from danqing.engine.sources.base import Source
from danqing.engine.sources.sample import Sample


class Head(Source):
    """The first `rows` rows of a source."""

    def __init__(self, source: Source, rows: int) -> None:
        self.source, self.rows = source, rows
        self.damage, self.encodings = source.damage, source.encodings

    def part_names(self) -> list[str]:
        return self.source.part_names()

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[Sample]:
        return islice(self.source, self.rows)
