"""Source: a kind of input. A class names the files that it reads and cuts them; an instance reads one shard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import ClassVar

from danqing.engine.core.damage import Damage
from danqing.engine.sources.inputs import Shard
from danqing.engine.sources.sample import Layout, Sample
from danqing.engine.sources.text import Decoder


class Source(ABC):
    """The samples of one shard, in order; every iteration reads them again.

    Attributes:
        suffixes: ends of the names of the files that the source reads; empty for the source of folders.
        is_table: whether a file lists captions beside their pictures. A folder stands for its tables only if it has no
            other files that a source reads; a table is opened when inputs are looked for, to find missing columns.
        damage: places of the input that cannot be read and are not rows; complete when the source was read to its end.
        encodings: encoding → number of texts or tables read with it, without UTF-8; complete when `damage` is.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    is_table: ClassVar[bool] = False

    @cached_property
    def damage(self) -> list[Damage]:
        return []

    @cached_property
    def encodings(self) -> Counter[str]:
        return Counter()

    @classmethod
    def pieces(cls, path: Path, layout: Layout) -> Sequence[tuple[int, int]] | None:
        """Lists the rows of an input that must stay in one shard, as (rows, bytes) in order.

        Returns:
            None if the whole file is one shard whose rows are counted when it is opened.
        """
        return None

    @classmethod  # noqa: B027  # most sources have no cache
    def clear_cache(cls) -> None:
        """Empties the cache of what was read, because files can change between two calls of `find_shards`."""

    @abstractmethod
    def __init__(self, shard: Shard, layout: Layout) -> None:
        """Opens a shard.

        Raises:
            DanqingError: the file cannot be read, or lacks a column; names the file and what to do.
        """

    def part_names(self) -> list[str]:
        """Lists the extensions of the shard's files, for the message that the wanted one is missing."""
        return []

    def decoder(self, encoding: str) -> Decoder:
        """Makes the decoder of one iteration over the samples; it counts in `encodings`, from 0."""
        self.encodings.clear()
        return Decoder(encoding, self.encodings)

    def samples_at(self, rows: Sequence[int]) -> Iterator[tuple[int, Sample]]:
        """Yields some rows, given in ascending order, with their numbers; those that are missing are left out."""
        wanted = set(rows)
        for row, sample in enumerate(islice(self, rows[-1] + 1 if rows else 0)):
            if row in wanted:
                yield row, sample

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __iter__(self) -> Iterator[Sample]: ...
