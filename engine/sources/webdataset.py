"""WebDataset tar shards in img2dataset's layout: KEY.jpg + KEY.txt + KEY.json, members in any order."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from functools import partial

from danqing.engine.core.damage import Damage
from danqing.engine.sources.base import Source
from danqing.engine.sources.inputs import Shard
from danqing.engine.sources.sample import Layout, Sample, check_size, from_members
from danqing.engine.sources.sidecar import failed_downloads
from danqing.engine.sources.tar import Index, read_members, read_sparse
from danqing.engine.sources.text import Decoder

Parts = dict[str, tuple[int, int]]
"""The members of a sample: extension → offset and size of its content."""


class WebDataset(Source):
    """An indexed tar: rows in the order of their first members, members read by offset.

    The index reads headers only, so a row's members may lie anywhere in the file. Of a damaged tar the complete members
    before the damage are used; `damage` says where it is. A file that is no tar has damage and no rows.

    Downloads that img2dataset lists as failed, in a table beside the tar, are rows without a picture behind the others.
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
        self.failed = failed_downloads(self.path.with_suffix(".parquet"), {key for key, _ in self.samples}, layout)

    def part_names(self) -> list[str]:
        return list(dict.fromkeys(name.rpartition(".")[2].lower() for name, _, _ in self.index.members))

    def __len__(self) -> int:
        return len(self.samples) + len(self.failed)

    def __iter__(self) -> Iterator[Sample]:
        decoder = Decoder(self.layout.encoding)
        self.encodings.clear()
        decoder.counts = self.encodings
        if self.samples:
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                for key, parts in self.samples:
                    yield from_members(key, parts, partial(self._read, descriptor, parts), self.layout, decoder)
            finally:
                os.close(descriptor)
        yield from self.failed

    def _read(self, descriptor: int, parts: Parts, extension: str) -> bytes:
        offset, size = parts[extension]
        check_size(size, self.layout.largest(extension))
        if offset in self.index.holes:
            return read_sparse(descriptor, offset, size, self.index.holes[offset])
        return os.pread(descriptor, size, offset)


def samples_of(members: Iterable[tuple[str, int, int]], layout: Layout) -> list[tuple[str, Parts]]:
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
    closed: list[tuple[int, str, Parts]] = []
    firsts: dict[str, int] = {}
    dotted: dict[str, list[tuple[int, str, str, tuple[int, int]]]] = {}
    for position, (name, offset, size) in enumerate(members):
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        extension = extension.lower()
        if extension not in known or not stem:
            long_stem, _, extension = base.rpartition(".")
            if stem and extension.lower() in known:
                key = f"{folder}/{stem}" if folder else stem
                long_key = f"{folder}/{long_stem}" if folder else long_stem
                dotted.setdefault(key, []).append((position, long_key, extension.lower(), (offset, size)))
            continue
        key = f"{folder}/{stem}" if folder else stem
        parts = found.get(key)
        if parts is None:
            found[key] = parts = {}
            firsts[key] = position
        elif extension in parts:
            closed.append((firsts[key], key, parts))
            found[key] = parts = {}
            firsts[key] = position
        parts[extension] = offset, size
    if not dotted and not closed:
        return list(found.items())
    images = set(layout.image_extensions)
    for key, entries in dotted.items():
        pictured = not images.isdisjoint(found.get(key, ()))
        groups: dict[str, tuple[int, Parts]] = {}
        for position, long_key, extension, content in entries:
            first, parts = groups.setdefault(long_key, (position, {}))
            if extension in parts:
                closed.append((first, long_key, parts))
                groups[long_key] = position, {extension: content}
            else:
                parts[extension] = content
        closed += [
            (first, long_key, parts)
            for long_key, (first, parts) in groups.items()
            if not pictured or (not images.isdisjoint(parts) and not images.issuperset(parts))
        ]
    closed += [(firsts[key], key, parts) for key, parts in found.items()]
    return [(key, parts) for _, key, parts in sorted(closed, key=lambda entry: entry[0])]
