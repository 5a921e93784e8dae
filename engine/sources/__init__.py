"""Inputs: from what the user typed to shards of rows, and from a shard to its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from danqing.engine.core.errors import DanqingError
from danqing.engine.sources.folder import FolderShard, pictures_in
from danqing.engine.sources.inputs import Shard, files_in, find_files
from danqing.engine.sources.limit import Head
from danqing.engine.sources.listed import ListedShard, listed
from danqing.engine.sources.parquet import ParquetShard, row_groups
from danqing.engine.sources.sample import Layout, Sample, Source
from danqing.engine.sources.tables import SUFFIXES as TABLES
from danqing.engine.sources.webdataset import TarShard

__all__ = ["Layout", "Sample", "Shard", "Source", "find_shards", "first_rows", "open_shard"]

SHARD_ROWS = 10_000
"""Where larger inputs than a shard are cut, as img2dataset cuts them."""

KINDS = ".tar shards, tables (.parquet, .csv, .jsonl) or pictures"


def find_shards(inputs: Iterable[str], layout: Layout | None = None) -> list[Shard]:
    """The shards of all inputs, in the order given; folders, tables and large Parquet files are cut into several.

    Raises:
        DanqingError: an input that is missing, empty, given twice, of no known kind, or without the columns.
    """
    layout = layout or Layout()
    for kept in (pictures_in, listed):
        kept.cache_clear()  # what an earlier run saw may have changed
    paths = find_files(
        inputs, (".tar", *TABLES), f"not an input this command reads ({KINDS})", partial(_inside, layout)
    )
    stems = Counter(map(_stem, paths))
    names = [_stem(p) if stems[_stem(p)] == 1 else f"{p.parent.name}/{_stem(p)}" for p in paths]
    if len(set(names)) < len(names):
        names = [str(p.with_name(_stem(p))) for p in paths]
    shards: list[Shard] = []
    for name, path in zip(names, paths, strict=True):
        slices = list(_slices(path, layout))
        for number, (first, rows, size) in enumerate(slices):
            called = name if len(slices) == 1 else f"{name}-{number:05d}"
            shards.append(Shard(len(shards), called, path, size, first, rows))
        if path.name.endswith(TABLES) and not path.is_dir():
            open_shard(shards[-1], layout)  # a wrong column is said now and not in an hour
    return shards


def open_shard(shard: Shard, layout: Layout) -> Source:
    """The samples of a shard.

    Raises:
        DanqingError: a file that cannot be read at all, or without the columns; names them.
    """
    source: Source
    if shard.path.is_dir():
        source = FolderShard(shard, layout)
    elif shard.path.suffix == ".tar":
        source = TarShard(shard, layout)
    else:
        source = (ParquetShard if shard.path.suffix == ".parquet" else ListedShard)(shard, layout)
    return source if shard.rows is None or len(source) <= shard.rows else Head(source, shard.rows)


def first_rows(shards: Iterable[Shard], limit: int | None, layout: Layout) -> list[Shard]:
    """Returns the shards that hold the first `limit` rows over all shards; the last of them may be cut.

    Shards behind the limit are not opened. Without a limit these are all shards.
    """
    if limit is None:
        return list(shards)
    chosen: list[Shard] = []
    for shard in shards:
        rows = len(open_shard(shard, layout)) if shard.rows is None else shard.rows
        if rows > limit:
            shard = replace(shard, rows=limit, bytes=shard.bytes * limit // rows)
        chosen.append(shard)
        limit -= min(rows, limit)
        if limit == 0:
            break
    return chosen


def _stem(path: Path) -> str:
    suffix = next((s for s in (".tar", *TABLES) if path.name.endswith(s)), "")
    return path.name.removesuffix(suffix) or path.resolve().name


def _inside(layout: Layout, folder: Path) -> list[Path]:
    """What a folder stands for: its shards, else its tables of pictures, else its pictures."""
    if shards := files_in(folder, (".tar",)):
        return shards
    # Beside a folder 00000/ of pictures, img2dataset leaves 00000.parquet, which has their captions but not them.
    tables = [path for path in files_in(folder, TABLES) if not (folder / _stem(path)).is_dir()]
    if named := [path for path in tables if _stem(path) == "metadata"]:  # Hugging Face's name for it
        return named
    if tables and files_in(folder, tuple(f".{key}" for key in layout.image_keys)):
        raise DanqingError(
            f"{folder}: holds pictures and tables ({tables[0].name}); give the table, if it names the pictures, "
            "or move it elsewhere"
        )
    return tables or [folder]


def _slices(path: Path, layout: Layout) -> Iterator[tuple[int, int | None, int]]:
    """First row, rows and bytes of each shard that the input makes."""
    if path.suffix == ".tar" and not path.is_dir():
        yield 0, None, path.stat().st_size
        return
    sizes: list[tuple[int, int]]  # rows that stay together, and their bytes
    if path.is_dir():
        pictures = pictures_in(path, layout)
        if not pictures:
            raise DanqingError(f"{path}: a folder without {KINDS}")
        sizes = [(1, sum((path / file).stat().st_size for file in picture.files.values())) for picture in pictures]
    elif path.suffix == ".parquet":
        sizes = row_groups(path)
    else:
        rows = len(listed(path))
        sizes = [(1, path.stat().st_size // max(rows, 1))] * rows
    first = rows = size = 0
    for more_rows, more_bytes in sizes:
        rows, size = rows + more_rows, size + more_bytes
        if rows >= SHARD_ROWS:
            yield first, rows, size
            first, rows, size = first + rows, 0, 0
    if rows or not first:
        yield first, rows, size
