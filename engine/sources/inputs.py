"""From what the user typed to files: folders, globs and brace ranges."""

from __future__ import annotations

import glob
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from danqing.engine.core.errors import DanqingError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True)
class Shard:
    """Rows that are scored and written together: one input file, or a slice of a larger one or of a folder.

    `number` names the run's files (00000), `name` the shard in every row. `first`, `rows`: where in `path` the slice
    lies; None for all of a file whose rows nobody has counted yet. A limit of rows cuts
    `rows`.
    """

    number: int
    name: str
    path: Path
    bytes: int
    first: int = 0
    rows: int | None = None

    @property
    def span(self) -> slice:
        """The shard's rows, of all those in `path`."""
        return slice(self.first, None if self.rows is None else self.first + self.rows)

    def key(self, row: int) -> str:
        """A key for a row that has none of its own, as img2dataset makes them: the shard's number, then the row's."""
        return f"{self.number:05d}{row:04d}"


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


def find_files(
    inputs: Iterable[str], suffixes: tuple[str, ...], wrong: str, inside: Callable[[Path], list[Path]]
) -> list[Path]:
    """The files of all inputs (files, folders, globs, brace ranges), in the order given.

    Args:
        suffixes: how the names of such files end.
        wrong: what to say of any other file.
        inside: what a folder stands for.

    Raises:
        DanqingError: an input names nothing, is missing, given twice or no such file.
    """
    paths: list[Path] = []
    for text in inputs:
        matches = [Path(match) for match in expand(text)]
        if not matches:
            raise DanqingError(f"{text}: matches no file")
        for path in matches:
            paths.extend(inside(path) if path.is_dir() else [path])
    for path in paths:
        if path.is_dir():
            continue
        if not path.is_file():
            raise DanqingError(f"{path}: no such file")
        if not path.name.endswith(suffixes):
            raise DanqingError(f"{path}: {wrong}")
    twice = [str(path) for path, count in Counter(p.resolve() for p in paths).items() if count > 1]
    if twice:
        raise DanqingError(f"{twice[0]}: given twice")
    return paths


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The visible files directly in a folder whose names end so, sorted."""
    return sorted(
        p for p in folder.iterdir() if p.name.endswith(suffixes) and not p.name.startswith(".") and p.is_file()
    )
