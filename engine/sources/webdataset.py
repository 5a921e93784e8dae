"""WebDataset tar shards in img2dataset's layout: KEY.jpg + KEY.txt + KEY.json, members in any order."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from functools import partial

from danqing.engine.core.errors import DanqingError
from danqing.engine.sources.inputs import Shard
from danqing.engine.sources.sample import Layout, Sample, from_members
from danqing.engine.sources.tar import read_members


class TarShard:
    """An indexed tar: its rows in order of first appearance, members read by offset.

    The index reads headers only, so a row's members may lie anywhere in the file. A tar cut short keeps its
    whole members; `damage` then says so in words.
    """

    def __init__(self, shard: Shard, layout: Layout) -> None:
        self.path, self.layout = shard.path, layout
        self.damage: str | None = None
        self.members: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            self._index()
        except (OSError, tarfile.TarError) as problem:
            raise DanqingError(f"{self.path}: cannot be read as a tar file: {problem}") from None

    def _index(self) -> None:
        members, self.damage = read_members(self.path)
        for name, offset, size in members:
            folder, _, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            parts = self.members.setdefault(f"{folder}/{stem}" if folder else stem, {})
            parts[extension.lower()] = offset, size

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Sample]:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for key, parts in self.members.items():
                yield from_members(key, parts, partial(_read, descriptor, parts), self.layout)
        finally:
            os.close(descriptor)


def _read(descriptor: int, parts: dict[str, tuple[int, int]], extension: str) -> bytes:
    offset, size = parts[extension]
    return os.pread(descriptor, size, offset)
