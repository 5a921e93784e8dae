"""Inputs: from what the user typed to shards of rows."""

from __future__ import annotations

import glob
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import DanqingError
from engine.sources.webdataset import Sample, TarShard

__all__ = ["Layout", "Sample", "Shard", "expand", "find_shards", "open_shard"]

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True)
class Layout:
    """Which members of a sample are its picture and its caption."""

    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")
    caption_keys: tuple[str, ...] = ("txt",)


@dataclass(frozen=True)
class Shard:
    """One input file. `number` names the run's files (00000), `name` the shard in every row."""

    number: int
    name: str
    path: Path
    bytes: int


def expand(pattern: str) -> list[str]:
    """`{00000..00041}` and `{a,b}` as the shell and webdataset write them, then globs; sorted within a glob."""
    found = RANGE.search(pattern)
    if found:
        first, last, words = found.groups()
        if words is not None:
            items: Iterable[str] = words.split(",")
        else:
            width = len(first) if first.startswith("0") or len(first) == len(last) else 0
            items = (str(i).zfill(width) for i in range(int(first), int(last) + 1))
        head, tail = pattern[: found.start()], pattern[found.end() :]
        return list(itertools.chain.from_iterable(expand(head + item + tail) for item in items))
    if glob.has_magic(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    return [pattern]


def find_files(inputs: Iterable[str], suffixes: tuple[str, ...], nothing_inside: str, wrong: str) -> list[Path]:
    """The files of all inputs (files, folders, globs, brace ranges), in the order given.

    Args:
        suffixes: how the names of such files end.
        nothing_inside, wrong: what to say of a folder without such a file, and of any other file.

    Raises:
        DanqingError: an input names nothing, is missing, given twice or no such file.
    """
    paths: list[Path] = []
    for text in inputs:
        matches = [Path(match) for match in expand(text)]
        if not matches:
            raise DanqingError(f"{text}: matches no file")
        for path in matches:
            inside = sorted(p for p in path.glob("*") if p.name.endswith(suffixes)) if path.is_dir() else [path]
            if not inside:
                raise DanqingError(f"{path}: {nothing_inside}")
            paths.extend(inside)
    for path in paths:
        if not path.is_file():
            raise DanqingError(f"{path}: no such file")
        if not path.name.endswith(suffixes):
            raise DanqingError(f"{path}: {wrong}")
    twice = [str(path) for path, count in Counter(p.resolve() for p in paths).items() if count > 1]
    if twice:
        raise DanqingError(f"{twice[0]}: given twice")
    return paths


def find_shards(inputs: Iterable[str]) -> list[Shard]:
    """The shards of all inputs, in the order given.

    Raises:
        DanqingError: see `find_files`.
    """
    paths = find_files(
        inputs, (".tar",), "a folder without .tar shards",
        "not a WebDataset shard (.tar); unpack compressed ones first",
    )  # fmt: skip
    stems = Counter(p.stem for p in paths)
    names = [p.stem if stems[p.stem] == 1 else f"{p.parent.name}/{p.stem}" for p in paths]
    if len(set(names)) < len(names):
        names = [str(p.with_suffix("")) for p in paths]
    return [
        Shard(number, name, path, path.stat().st_size)
        for number, (name, path) in enumerate(zip(names, paths, strict=True))
    ]


def open_shard(path: Path, layout: Layout) -> TarShard:
    return TarShard(path, layout.image_keys, layout.caption_keys)
