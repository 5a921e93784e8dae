"""A folder of picture files, each with its caption (.txt) and metadata (.json) beside it."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from danqing.engine.core.damage import Damage
from danqing.engine.sources.base import Source
from danqing.engine.sources.files import FOLLOW, is_inside, read_file
from danqing.engine.sources.inputs import Shard
from danqing.engine.sources.sample import UNREADABLE, Layout, Sample, from_members

METADATA_TABLES = tuple(f"metadata.{kind}" for kind in ("csv", "jsonl", "parquet"))
"""Hugging Face's names of a table that lists the pictures of its folder."""
NOT_READ = (".tar", ".parquet", ".csv", ".jsonl", ".csv.gz", ".jsonl.gz", ".zip", ".tar.gz", ".tgz")
"""Files that hold pairs and do not belong to a folder of pictures."""


@dataclass(frozen=True)
class _Picture:
    """A picture's key and, by extension, its files relative to the folder."""

    key: str
    files: dict[str, str] = field(hash=False)


@dataclass(frozen=True)
class Listing:
    """The content of a folder and its subfolders.

    Attributes:
        pictures: sorted by folder and name.
        tables: Hugging Face's metadata tables; the pictures of their folders are not in `pictures`.
        damage: entries that are not read.
        bytes: sizes of the pictures with their other files, in bytes.
        extensions: of all files.
    """

    pictures: tuple[_Picture, ...]
    tables: tuple[Path, ...]
    damage: tuple[Damage, ...]
    bytes: tuple[int, ...]
    extensions: tuple[str, ...]


class PictureFolder(Source):
    """Pictures of a folder and its subfolders, by path; `cat.1.txt` and `cat.1.json` belong to `cat.1.jpg`."""

    def __init__(self, shard: Shard, layout: Layout) -> None:
        self.folder, self.layout = shard.path, layout
        self.pictures = list_folder(shard.path, layout).pictures[shard.span]

    @classmethod
    def pieces(cls, path: Path, layout: Layout) -> list[tuple[int, int]]:
        return [(1, size) for size in list_folder(path, layout).bytes]

    @classmethod
    def clear_cache(cls) -> None:
        list_folder.cache_clear()

    def part_names(self) -> list[str]:
        return list(list_folder(self.folder, self.layout).extensions)

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Sample]:
        decoder = self.decoder(self.layout.encoding)
        for picture in self.pictures:
            yield from_members(picture.key, picture.files, partial(self._read, picture.files), self.layout, decoder)

    def _read(self, files: dict[str, str], extension: str) -> bytes:
        limit = self.layout.largest(extension)
        return read_file(str(self.folder), files[extension], limit, self.layout.follow_links)


@lru_cache(1)  # all shards of a large folder need the same list
def list_folder(folder: Path, layout: Layout) -> Listing:
    """Lists the pictures of a folder with the files that belong to them; hidden entries are left out.

    Args:
        folder: the folder; its subfolders are read too.
        layout: which file extensions are pictures, and whether links that lead out of the folder are followed.
    """
    files: dict[str, dict[str, list[str]]] = {}
    sizes: Counter[str] = Counter()
    pictures: list[tuple[str, str]] = []
    tables: list[Path] = []
    damage: list[Damage] = []
    extensions: dict[str, None] = {}
    image_extensions = {*layout.image_extensions, *UNREADABLE}
    for where, folders, names in _walk(folder, layout, damage):
        if here := [name for name in METADATA_TABLES if name in names]:
            folders.clear()
            tables += [Path(where) / name for name in here]
            continue
        for name in names:
            path = (Path(where) / name).relative_to(folder)
            stem, extension = str(path.with_suffix("")), path.suffix[1:].lower()
            extensions[extension] = None
            if extension not in layout.known_extensions:
                if name.endswith(NOT_READ) and not (Path(where) / stem_of(name)).is_dir():
                    damage.append(Damage.at(Path(where) / name, "", "not read with the pictures; give it as an input"))
                continue
            files.setdefault(stem, {}).setdefault(extension, []).append(str(path))
            sizes[str(path)] = _size(Path(where) / name)
            if extension in image_extensions:
                pictures.append((stem, str(path)))
    found = tuple(_pictures_of(files, pictures, image_extensions))
    total = tuple(sum(sizes[file] for file in picture.files.values()) for picture in found)
    return Listing(found, tuple(tables), tuple(damage), total, tuple(extensions))


def _pictures_of(
    files: dict[str, dict[str, list[str]]], pictures: list[tuple[str, str]], image_extensions: set[str]
) -> Iterator[_Picture]:
    """Yields the pictures with the files that belong to each.

    Args:
        files: path without extension → extension in lower case → files: `a.txt` and `a.TXT` are two.
        pictures: path without extension, and file, of each picture. One that no decoder reads counts only if there is
            no other with its path.
        image_extensions: extensions of pictures.
    """
    readable = {stem for stem, file in pictures if _extension(file) not in UNREADABLE}
    chosen = [(stem, file) for stem, file in pictures if _extension(file) not in UNREADABLE or stem not in readable]
    count = Counter(stem for stem, _ in chosen)
    for stem, file in chosen:
        key = stem if count[stem] == 1 else file  # a.jpg and a.png are two pairs, and so are a.jpg and a.JPG
        beside = {end: _beside(file, found) for end, found in files[stem].items() if end not in image_extensions}
        yield _Picture(key, {_extension(file): file, **beside})


def _extension(file: str) -> str:
    return Path(file).suffix[1:].lower()


def _beside(picture: str, files: list[str]) -> str:
    """Chooses of files that differ in the case of their extensions: the last in the picture's case, else the last."""
    is_upper = Path(picture).suffix.isupper()
    return max(reversed(files), key=lambda file: Path(file).suffix.isupper() == is_upper)


def stem_of(name: str) -> str:
    """The name up to its first dot: img2dataset writes 00000.parquet beside the folder 00000."""
    return name.partition(".")[0]


def _walk(folder: Path, layout: Layout, damage: list[Damage]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields the folders like `os.walk`, sorted and without hidden entries; the layout says if links are followed."""
    seen = set()

    def refuse(problem: OSError) -> None:
        damage.append(Damage.at(problem.filename, "", problem.strerror))

    for where, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(where)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            path = f"{where}/{name}"
            if Path(path).is_symlink() and not layout.follow_links:
                folders.remove(name)  # what it links to inside the folder is read under its own name
                if not is_inside(str(folder), path):
                    damage.append(Damage.at(path, "", f"a link to a folder outside the input's folder; {FOLLOW}"))
        yield where, folders, sorted(name for name in names if not name.startswith("."))


def _size(path: Path) -> int:
    try:
        status = path.stat()
    except OSError:  # a dangling link; its row says so
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
