"""A folder of picture files, each with its caption (.txt) and metadata (.json) beside it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from danqing.engine.sources.base import Source
from danqing.engine.sources.inputs import Shard
from danqing.engine.sources.sample import Layout, Sample, from_members


@dataclass(frozen=True)
class _Picture:
    """A picture's key and, by extension, its files relative to the folder."""

    key: str
    files: dict[str, str] = field(hash=False)


class PictureFolder(Source):
    """Pictures of a folder and its subfolders, by path; `cat.1.txt` and `cat.1.json` belong to `cat.1.jpg`."""

    def __init__(self, shard: Shard, layout: Layout) -> None:
        self.folder, self.layout = shard.path, layout
        self.pictures = pictures_in(shard.path, layout)[shard.span]

    @classmethod
    def pieces(cls, path: Path, layout: Layout) -> list[tuple[int, int]]:
        return [
            (1, sum((path / file).stat().st_size for file in picture.files.values()))
            for picture in pictures_in(path, layout)
        ]

    @classmethod
    def clear_cache(cls) -> None:
        pictures_in.cache_clear()

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Sample]:
        for picture in self.pictures:
            yield from_members(picture.key, picture.files, partial(_read, self.folder, picture.files), self.layout)


def _read(folder: Path, files: dict[str, str], extension: str) -> bytes:
    return (folder / files[extension]).read_bytes()


@lru_cache(1)  # all shards of a large folder need the same list
def pictures_in(folder: Path, layout: Layout) -> tuple[_Picture, ...]:
    """Lists the pictures of a folder with the files that belong to them; hidden files are left out.

    Args:
        folder: the folder; its subfolders are read too.
        layout: which file extensions are pictures.

    Returns:
        The pictures, sorted by folder and name.
    """
    files: dict[str, dict[str, str]] = {}
    pictures: list[tuple[str, str]] = []
    image_extensions = set(layout.image_extensions)
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = (Path(where) / name).relative_to(folder)
            stem, extension = str(path.with_suffix("")), path.suffix[1:].lower()
            files.setdefault(stem, {})[extension] = str(path)
            if extension in image_extensions:
                pictures.append((stem, extension))
    pictures_of_stem = Counter(stem for stem, _ in pictures)
    return tuple(
        _Picture(
            stem if pictures_of_stem[stem] == 1 else files[stem][extension],  # a.jpg and a.png are two pairs, not one
            {k: v for k, v in files[stem].items() if k == extension or k not in image_extensions},
        )
        for stem, extension in pictures
    )
