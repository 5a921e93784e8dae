"""The rows of an open shard: the samples of its source with unique keys, up to a limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from danqing.engine.core.carried import input_key
from danqing.engine.core.names import readable_name, unique_key
from danqing.engine.sources.base import Source
from danqing.engine.sources.sample import Sample


class Rows(Source):
    """The first samples of a source, with unique keys.

    The keys are those of `unique_key`, which depend on the order of the samples only. `Sample.input_key` is set to the
    input's own key where that is another one.

    Args:
        source: of all samples.
        limit: maximum number of rows; None: all.
    """

    def __init__(self, source: Source, limit: int | None) -> None:
        self.source, self.limit = source, limit
        self.damage, self.encodings = source.damage, source.encodings

    def part_names(self) -> list[str]:
        return self.source.part_names()

    def samples_at(self, rows: Sequence[int]) -> Iterator[tuple[int, Sample]]:
        """Yields some rows with their numbers; their keys are the input's own."""
        return self.source.samples_at(rows)

    def __len__(self) -> int:
        return len(self.source) if self.limit is None else min(len(self.source), self.limit)

    def __iter__(self) -> Iterator[Sample]:
        taken: dict[str, int] = {}
        for sample in islice(self.source, self.limit):
            if not sample.key.isascii():
                sample.key = readable_name(sample.key)
            key, sample.key = sample.key, unique_key(sample.key, taken)
            renamed = key if sample.key != key else None
            sample.input_key = renamed or input_key(sample.metadata, key, len(sample.image))
            yield sample
