"""Source: a kind of input. A class says which files it reads and how it cuts them; an instance reads a shard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from danqing.engine.core.damage import Damage
from danqing.engine.sources.inputs import Shard
from danqing.engine.sources.sample import Layout, Sample


class Source(ABC):
    """The samples of one shard, in order; every iteration reads them again.

    Attributes:
        suffixes: ends of the names of the files that the source reads; empty for the source of folders.
        is_table: whether a file lists captions beside their pictures. A folder stands for its tables only if it has no
            other files that a source reads; a table is opened when inputs are looked for, to find missing columns.
        damage: what cannot be read and is no row; complete when the source has been read to its end.
        encodings: encoding → texts or tables that were read with it, UTF-8 left out; complete as `damage` is.
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
        """Forgets what was read of earlier inputs, which may have changed."""

    @abstractmethod
    def __init__(self, shard: Shard, layout: Layout) -> None:
        """Opens a shard.

        Raises:
            DanqingError: the file cannot be read, or lacks a column; names the file and what to do.
        """

    def part_names(self) -> list[str]:
        """Lists the extensions that the shard's files have, for the message that none is the wanted one."""
        return []

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __iter__(self) -> Iterator[Sample]: ...
