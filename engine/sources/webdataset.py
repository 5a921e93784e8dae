"""WebDataset tar shards in img2dataset's layout: KEY.jpg + KEY.txt + KEY.json, members in any order."""

from __future__ import annotations

import copy
import os
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial

from danqing.engine.core.damage import Damage
from danqing.engine.sources import sample
from danqing.engine.sources.base import Source
from danqing.engine.sources.inputs import Shard
from danqing.engine.sources.sample import Layout, Sample, check_size, from_members
from danqing.engine.sources.sidecar import failed_downloads
from danqing.engine.sources.tar import Index, Member, read_members, read_sparse

Parts = dict[str, tuple[int, int]]
"""The members of a sample: extension → offset and size of its content."""


class WebDataset(Source):
    """An indexed tar: rows in the order of their first members, members read by offset.

    The index reads headers only, so a row's members may lie anywhere in the file. Of a damaged tar, the members before
    the damage are used. A file that is not a tar has damage and no rows.

    Failed downloads that img2dataset lists in a table beside the tar follow as rows without a picture.
    """

    suffixes = (".tar",)

    def __init__(self, shard: Shard, layout: Layout) -> None:
        self.path, self.layout = shard.path, layout
        try:
            self.index = read_members(self.path)
        except (OSError, tarfile.TarError) as problem:
            self.index = Index()
            self.damage.append(Damage.at(self.path, "", f"cannot be read as a tar file: {problem}"))
        self.damage += [Damage.at(self.path, place, problem) for place, problem in self.index.damage]
        self.samples = samples_of(self.index.members, layout)
        self.failed = failed_downloads(self.path.with_suffix(".parquet"), self.samples, layout)

    def part_names(self) -> list[str]:
        return list(dict.fromkeys(name.rpartition(".")[2].lower() for name, _, _ in self.index.members))

    def __len__(self) -> int:
        return len(self.samples) + len(self.failed)

    def __iter__(self) -> Iterator[Sample]:
        decoder = self.decoder(self.layout.encoding)
        if self.samples:
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                for key, parts in self.samples:
                    yield from_members(key, parts, partial(self._read, descriptor, parts), self.layout, decoder)
            finally:
                os.close(descriptor)
        yield from self.failed

    def samples_at(self, rows: Sequence[int]) -> Iterator[tuple[int, Sample]]:
        """Yields some rows with their numbers; reads no others."""
        part, there = copy.copy(self), [row for row in rows if row < len(self.samples)]
        part.samples, part.failed = [self.samples[row] for row in there], []
        yield from zip(there, part, strict=True)
        failed = [row for row in rows if len(self.samples) <= row < len(self)]
        yield from ((row, self.failed[row - len(self.samples)]) for row in failed)

    def _read(self, descriptor: int, parts: Parts, extension: str) -> bytes:
        offset, size = parts[extension]
        if size > sample.MAX_CAPTION_BYTES:  # the lowest limit
            check_size(size, self.layout.largest(extension))
        if offset in self.index.holes:
            return read_sparse(descriptor, offset, size, self.index.holes[offset])
        return os.pread(descriptor, size, offset)


def samples_of(members: list[Member], layout: Layout) -> list[tuple[str, Parts]]:
    """Groups the members of a tar to samples.

    A key is the member's name up to the first dot of its base name, as in webdataset. Where what follows is no
    extension of the layout (`v1.0.jpg`), the key is the name up to the last dot, if the members with that key are a
    picture and its caption, or if the first rule leaves a sample without a picture. A member that repeats its key and
    extension starts another sample with this key. Hidden files (`._0.jpg`, `.DS_Store`) and members with other
    extensions (`README`, `0.seg.png` beside `0.jpg`) belong to no sample.

    Args:
        members: name, offset and size of each file.
        layout: which extensions are parts of a sample.

    Returns:
        Key and members of each sample, in the order of their first members.
    """
    known = layout.known_extensions
    found: dict[str, Parts] = {}
    for name, offset, size in members:
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        if extension not in known:
            extension = extension.lower()
            if extension not in known:
                return _unusual_samples(members, layout)
        key = f"{folder}/{stem}" if folder else stem
        parts = found.setdefault(key, {})
        if extension in parts or not stem:
            return _unusual_samples(members, layout)
        parts[extension] = offset, size
    return list(found.items())


def _unusual_samples(members: list[Member], layout: Layout) -> list[tuple[str, Parts]]:
    """Groups members as `samples_of` does, including repeated ones and those with unknown extensions."""
    known, images = layout.known_extensions, set(layout.image_extensions)
    groups: dict[str, _Group] = {}
    dotted: dict[str, dict[str, _Group]] = {}
    for position, (name, offset, size) in enumerate(members):
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if not stem:
            continue
        if extension.lower() in known:
            groups.setdefault(key, _Group(key)).add(position, extension.lower(), (offset, size))
            continue
        long_stem, _, extension = base.rpartition(".")
        if extension.lower() in known:
            long_key = f"{folder}/{long_stem}" if folder else long_stem
            group = dotted.setdefault(key, {}).setdefault(long_key, _Group(long_key))
            group.add(position, extension.lower(), (offset, size))
    chosen = list(groups.values())
    for key, longer in dotted.items():
        pictured = key in groups and not images.isdisjoint(groups[key].extensions)
        chosen += [
            group
            for group in longer.values()
            if not pictured or (group.extensions & images and group.extensions - images)
        ]
    samples = [(first, group.key, parts) for group in chosen for first, parts in group.samples]
    return [(key, parts) for _, key, parts in sorted(samples, key=lambda sample: sample[0])]


class _Group:
    """The samples with one key: position of the first member, and members."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.samples: list[tuple[int, Parts]] = []

    def add(self, position: int, extension: str, content: tuple[int, int]) -> None:
        if not self.samples or extension in self.samples[-1][1]:
            self.samples.append((position, {}))
        self.samples[-1][1][extension] = content

    @property
    def extensions(self) -> set[str]:
        return {extension for _, parts in self.samples for extension in parts}
