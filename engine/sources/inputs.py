"""From arguments of the command line to files: folders, globs and brace ranges."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from danqing.engine.core import storage
from danqing.engine.core.damage import Damage
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.escape import printable
from danqing.engine.sources.files import FOLLOW, is_inside

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True)
class Shard:
    """Rows that are scored and written together: an input file, or a slice of a larger file or of a folder.

    Attributes:
        number: position among the run's shards; names the run's files (00000).
        name: name of the shard in every row.
        path: the input file or folder.
        bytes: size of the rows in the input.
        first: position in `path` of the first row.
        rows: number of rows; None for a whole file whose rows are not counted yet.
    """

    number: int
    name: str
    path: Path
    bytes: int
    first: int = 0
    rows: int | None = None

    @property
    def span(self) -> slice:
        """The shard's rows among those of `path`."""
        return slice(self.first, None if self.rows is None else self.first + self.rows)

    def key(self, row: int) -> str:
        """Makes a key for a row without one, in img2dataset's form: the shard's number, then the row's."""
        return f"{self.number:05d}{row:04d}"


def expand(pattern: str) -> list[str]:
    """Expands brace ranges (`{00000..00041}`, `{a,b}`), then globs; sorts the matches of each glob.

    A name that exists stands for itself: files may have brackets and braces in their names.
    """
    remote = storage.ADDRESS.match(pattern) is not None
    if not remote and os.path.lexists(pattern):
        return [pattern]
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
    if remote and storage.has_magic(pattern):
        return [str(path) for path in storage.glob(pattern)]
    if glob.has_magic(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    return [pattern]


def find_files(
    inputs: Iterable[str],
    suffixes: tuple[str, ...],
    refusal: str,
    in_folder: Callable[[Path], list[Path]],
    damage: Sequence[Damage] = (),
) -> list[Path]:
    """Finds the files of all inputs (files, folders, globs, brace ranges), in the given order.

    Args:
        inputs: arguments of the command line.
        suffixes: accepted ends of files' names.
        refusal: error text for a file with another name.
        in_folder: lists the files or folders that a folder stands for.
        damage: what `in_folder` could not read.

    Raises:
        DanqingError: an input matches nothing, is missing, is given twice or has another suffix; names it.
    """
    paths: list[Path] = []
    for text in inputs:
        if not text:
            raise DanqingError("an input is empty; is a variable of the command not set?")
        matches = [storage.path_of(match) for match in expand(text)]
        if len(matches) > 1:
            storage.look_up(matches)
        if not matches:
            raise DanqingError(f"{text}: matches no file")
        for path in matches:
            if text.endswith("/") and path.is_file():
                raise DanqingError(f"{printable(text)}: a file, not a folder; leave out the slash at the end")
            paths.extend(in_folder(path) if path.is_dir() else [path])
    for path in paths:
        if path.is_dir():
            continue
        if not path.is_file():
            raise DanqingError(f"{printable(path)}: {'not a file' if path.exists() else 'no such file'}")
        if not path.name.endswith(suffixes):
            raise DanqingError(f"{path}: {refusal}")
    if not paths:
        problem = f"no input can be read: {damage[0]}" if damage else "no input"
        raise DanqingError(f"{problem}; name shards, tables or folders of pictures")
    twice = [str(path) for path, count in Counter(p.resolve() for p in paths).items() if count > 1]
    if twice:
        raise DanqingError(f"{twice[0]}: given twice; give each input once")
    return paths


def files_in(
    folder: Path, suffixes: tuple[str, ...], follow_links: bool = False, damage: list[Damage] | None = None
) -> list[Path]:
    """Lists the files directly in a folder whose names have one of the suffixes, sorted; hidden files are left out.

    Args:
        folder: the folder.
        suffixes: ends of the names.
        follow_links: also list links to files outside the folder.
        damage: receives the entries with such names that are not files, or are links to files outside the folder.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(suffixes) or path.name.startswith(".") or path.is_dir():
            continue
        if not path.is_file():
            problem = "a link to a file that does not exist" if path.is_symlink() else "not a file"
        elif not (follow_links or is_inside(str(folder), str(path))):
            problem = f"a link to a file outside the input's folder; {FOLLOW}"
        else:
            found.append(path)
            continue
        if damage is not None:
            damage.append(Damage.at(path, "", problem))
    return found
