"""Unique keys: every sample of a shard gets a key that no other sample has, also as the name of a member."""

from __future__ import annotations

from collections.abc import Iterator

from danqing.engine.core.names import member_name, readable_name
from danqing.engine.sources.base import Source
from danqing.engine.sources.sample import Sample


class UniqueKeys(Source):
    """The samples of a source with unique keys.

    A key whose member name (`engine.core.names.member_name`) an earlier sample of the shard has, gets `_1`, `_2`, … at
    its end; `Sample.input_key` then holds the input's own. The rule depends on the order of the rows only.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.damage, self.encodings = source.damage, source.encodings

    def part_names(self) -> list[str]:
        return self.source.part_names()

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Sample]:
        taken: dict[str, int] = {}
        for sample in self.source:
            if not sample.key.isascii():
                sample.key = readable_name(sample.key)
            name = member_name(sample.key)
            if name in taken:
                sample.input_key = sample.key
                sample.key = _next_key(sample.key, name, taken)
                name = member_name(sample.key)
            taken[name] = 0
            yield sample


def _next_key(key: str, name: str, taken: dict[str, int]) -> str:
    while True:
        taken[name] += 1
        candidate = f"{key}_{taken[name]}"
        if member_name(candidate) not in taken:
            return candidate
