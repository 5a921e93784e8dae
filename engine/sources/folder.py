"""A folder of picture files, each with its caption (.txt) and metadata (.json) beside it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from danqing.engine.sources.inputs import Shard
from danqing.engine.sources.sample import Layout, Sample, from_members


@dataclass(frozen=True)
class _Picture:
    """A picture's key and, by extension, the files that belong to it (relative to the folder)."""

    key: str
    files: dict[str, str] = field(hash=False)


class FolderShard:
    """Pictures of a folder and the folders inside it, by path; `cat.1.jpg` goes with `cat.1.txt` and `cat.1.json`."""

    damage: str | None = None

    def __init__(self, shard: Shard, layout: Layout) -> None:
        self.folder, self.layout = shard.path, layout
        self.pictures = pictures_in(shard.path, layout)[shard.span]

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Sample]:
        for picture in self.pictures:
            yield from_members(picture.key, picture.files, partial(_read, self.folder, picture.files), self.layout)


def _read(folder: Path, files: dict[str, str], extension: str) -> bytes:
    return (folder / files[extension]).read_bytes()


@lru_cache(1)  # every shard of a large folder asks for it
def pictures_in(folder: Path, layout: Layout) -> tuple[_Picture, ...]:
    """The pictures of a folder with the files beside them; hidden ones are left out."""
    files: dict[str, dict[str, str]] = {}
    pictures: list[tuple[str, str]] = []
    shown = {key.lower() for key in layout.image_keys}
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = (Path(where) / name).relative_to(folder)
            stem, extension = str(path.with_suffix("")), path.suffix[1:].lower()
            files.setdefault(stem, {})[extension] = str(path)
            if extension in shown:
                pictures.append((stem, extension))
    named = Counter(stem for stem, _ in pictures)
    return tuple(
        _Picture(
            stem if named[stem] == 1 else files[stem][extension],  # a.jpg and a.png are two pairs, not one
            {k: v for k, v in files[stem].items() if k == extension or k not in shown},
        )
        for stem, extension in pictures
    )
