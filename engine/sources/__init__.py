"""Inputs: finds the shards of files and folders, and opens a shard to read its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from danqing.engine.core.damage import Damage
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.names import readable_name
from danqing.engine.core.registry import Registry
from danqing.engine.core.storage import RemotePath, forget
from danqing.engine.sources.base import Source
from danqing.engine.sources.files import clear_cache
from danqing.engine.sources.folder import list_folder
from danqing.engine.sources.inputs import Shard, files_in, find_files
from danqing.engine.sources.rows import Rows
from danqing.engine.sources.sample import Layout, Sample

__all__ = ["SOURCES", "Layout", "Sample", "Shard", "Source", "check_parts", "find_shards", "first_rows", "open_shard"]

FOLDER = "folder"
SOURCES: Registry[type[Source]] = Registry(
    "danqing.sources",
    {
        "webdataset": "danqing.engine.sources.webdataset:WebDataset",
        "parquet": "danqing.engine.sources.parquet:Parquet",
        "text-table": "danqing.engine.sources.text_table:TextTable",
        FOLDER: "danqing.engine.sources.folder:PictureFolder",
    },
)
SHARD_ROWS = 10_000
"""Larger inputs are cut into shards of this many rows, the default of img2dataset."""
CHECKED_ROWS = 1000
"""Rows among which `check_parts` looks for the wanted picture and caption."""


def find_shards(inputs: Iterable[str], layout: Layout | None = None, damage: list[Damage] | None = None) -> list[Shard]:
    """Finds the shards of all inputs, in the given order.

    Folders of pictures, tables and Parquet files of more than `SHARD_ROWS` rows are cut into several shards.

    Args:
        inputs: files, folders, globs and brace ranges (`{00000..00041}.tar`).
        layout: which parts of a sample are its picture and its caption.
        damage: receives entries of folders that are not read.

    Returns:
        The shards, numbered from 0.

    Raises:
        DanqingError: an input is missing, empty, given twice, not readable by any source, or lacks a column.
    """
    layout, damage = layout or Layout(), [] if damage is None else damage
    clear_cache()
    forget()
    for source in SOURCES.values():
        source.clear_cache()
    suffixes = tuple(suffix for source in SOURCES.values() for suffix in source.suffixes)
    refusal = f"not an input this command reads ({_kinds()})"
    paths = find_files(inputs, suffixes, refusal, partial(_in_folder, layout, damage), damage)
    stems = Counter(map(_stem, paths))
    names = [_stem(p) if stems[_stem(p)] == 1 else f"{p.parent.name}/{_stem(p)}" for p in paths]
    if len(set(names)) < len(names):
        names = [str(p.with_name(_stem(p))) for p in paths]
    shards: list[Shard] = []
    for name, path in zip(names, paths, strict=True):
        slices = list(_slices(path, layout))
        for number, (first, rows, size) in enumerate(slices):
            shard_name = readable_name(name if len(slices) == 1 else f"{name}-{number:05d}")
            shards.append(Shard(len(shards), shard_name, path, size, first, rows))
        if _source_of(path).is_table:
            open_shard(shards[-1], layout)  # a missing column is an error now, not after hours of scoring
    return shards


def open_shard(shard: Shard, layout: Layout) -> Source:
    """Opens a shard to read its samples.

    Raises:
        DanqingError: the file cannot be read or lacks a column; names it.
    """
    return Rows(_source_of(shard.path)(shard, layout), shard.rows)


def check_parts(shards: Iterable[Shard], layout: Layout, captions: bool = True) -> None:
    """Checks that the first rows have the picture and the caption that the layout names.

    Checks chosen names only, because an input may have no captions and its first downloads may have failed. Reads rows
    until one has both, at most `CHECKED_ROWS`.

    Args:
        shards: the shards, opened in order.
        layout: which parts of a sample are its picture and its caption.
        captions: whether captions are needed.

    Raises:
        DanqingError: no row has one of the names; lists the names that rows have. Or no input can be read.
    """
    wanted = {"--image-key": layout.image_keys} if layout.image_keys != Layout.image_keys else {}
    if captions and layout.caption_keys != Layout.caption_keys:
        wanted["--caption-key"] = layout.caption_keys
    rows, names, damage = 0, dict[str, None](), list[Damage]()
    for shard in shards:
        source = open_shard(shard, layout)
        damage += source.damage
        names |= dict.fromkeys(source.part_names())
        for sample in islice(source, CHECKED_ROWS - rows):
            rows += 1
            names |= dict.fromkeys(sample.metadata)
            if sample.image_extension or sample.image:
                wanted.pop("--image-key", None)
            if sample.caption:
                wanted.pop("--caption-key", None)
            if not wanted:
                return
        if rows == CHECKED_ROWS:
            break
    if not rows and damage:
        raise DanqingError(f"no input can be read: {damage[0]}")
    for flag, keys in wanted.items() if rows else ():
        missing = " or ".join(map(repr, keys))
        raise DanqingError(f"{flag}: no row has a member {missing}; members are {', '.join(names) or 'none'}")


def first_rows(shards: Iterable[Shard], limit: int | None, layout: Layout) -> list[Shard]:
    """Returns the shards that hold the first `limit` rows over all shards; the last of them may be cut.

    Args:
        shards: the shards. Those after the limit are not opened.
        limit: maximum number of rows; None: all.
        layout: which parts of a sample are its picture and its caption.

    Returns:
        The shards.

    Raises:
        DanqingError: a shard cannot be opened; names its file.
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


def _source_of(path: Path) -> type[Source]:
    """The source with the longest suffix of the file's name; of equal ones, the first that is registered."""
    if path.is_dir():
        return SOURCES[FOLDER]
    matching = [
        (len(suffix), source) for source in SOURCES.values() for suffix in source.suffixes if path.name.endswith(suffix)
    ]
    if not matching:
        raise DanqingError(f"{path}: no installed source reads such files ({_kinds()})")
    return max(matching, key=lambda match: match[0])[1]


def _suffixes(is_table: bool) -> tuple[str, ...]:
    return tuple(suffix for source in SOURCES.values() if source.is_table == is_table for suffix in source.suffixes)


def _kinds() -> str:
    return f"{', '.join(_suffixes(False))} shards, tables ({', '.join(_suffixes(True))}) or pictures"


def _stem(path: Path) -> str:
    """The file's name without the suffix of its source, or the folder's name."""
    suffixes = sorted((*_suffixes(False), *_suffixes(True)), key=len, reverse=True)
    suffix = next((suffix for suffix in suffixes if path.name.endswith(suffix)), "")
    return path.name.removesuffix(suffix) or path.resolve().name


def _in_folder(layout: Layout, damage: list[Damage], folder: Path) -> list[Path]:
    """The inputs that a folder stands for: its shards, else its tables of pictures, else its pictures."""
    unread: list[Damage] = []
    shards = files_in(folder, _suffixes(is_table=False), layout.follow_links, unread)
    if shards or unread:
        damage += unread
        return shards
    # Beside a folder 00000/ of pictures, img2dataset writes 00000.parquet, which has their captions but no pictures.
    tables = files_in(folder, _suffixes(is_table=True), layout.follow_links, damage)
    tables = [path for path in tables if not (folder / _stem(path)).is_dir()]
    if named := [path for path in tables if _stem(path) == "metadata"]:  # Hugging Face's name of such a table
        return named
    if tables and files_in(folder, tuple(f".{key}" for key in layout.image_keys)):
        raise DanqingError(
            f"{folder}: holds pictures and tables ({tables[0].name}); give the table, if it names the pictures, "
            "or move it elsewhere"
        )
    if tables:
        return tables
    if isinstance(folder, RemotePath):
        raise DanqingError(
            f"{folder}: no {_kinds().rpartition(' or ')[0]} here; single pictures are not listed on object storage: "
            "pack them as .tar shards, or name them in a table"
        )
    listing = list_folder(folder, layout)
    damage += listing.damage
    return [*listing.tables, *([folder] if listing.pictures or not listing.tables else [])]


def _slices(path: Path, layout: Layout) -> Iterator[tuple[int, int | None, int]]:
    """First row, rows and bytes of each shard of an input; rows are None if they are not counted yet."""
    pieces = _source_of(path).pieces(path, layout)
    if pieces is None:
        yield 0, None, path.stat().st_size
        return
    if path.is_dir() and not pieces:
        there = ", ".join(filter(None, list_folder(path, layout).extensions))
        raise DanqingError(f"{path}: a folder without {_kinds()}{f'; it has {there} files' if there else ''}")
    first = rows = size = 0
    for more_rows, more_bytes in pieces:
        rows, size = rows + more_rows, size + more_bytes
        if rows >= SHARD_ROWS:
            yield first, rows, size
            first, rows, size = first + rows, 0, 0
    if rows or not first:
        yield first, rows, size
