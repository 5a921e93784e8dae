"""The written shards of runs: which there are, and a row of one of them, wherever it lies in the file."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.cache import cache_path
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit
from danqing.engine.run.folder import Run
from danqing.engine.sources import Layout
from danqing.engine.sources.tar import read_members
from danqing.engine.sources.webdataset import samples_of
from danqing.engine.write.products import MARK, shard_files

TEXTS = ("text", "text_clean", "caption")
"""Columns of a shard's table that hold the text of a pair: the first that the row has."""
RECAPTION = "recaption"
FOOTERS = 32
"""Footers that are read at a time."""
UNPACKED_ROWS = 256
"""Rows of a table whose pictures are in memory while it is unpacked: a row group of `danqing write`."""


@dataclass(frozen=True)
class TrainShard:
    """A written shard.

    Attributes:
        table: path of its .parquet.
        rows: number of its pairs, from the first, that are used.
        mark: identity of its content, as `danqing write` noted it.
        recaptioned: whether its table has a column of recaptions.
    """

    table: Path
    rows: int
    mark: str
    recaptioned: bool = False


def find_shards(runs: Sequence[Path], pairs: int | None = None) -> list[TrainShard]:
    """Finds the shards that runs have written.

    Args:
        runs: folders of runs.
        pairs: use only so many pairs, from the first; None: all.

    Raises:
        DanqingError: a run is not written, misses a shard or is given twice, a shard's table cannot be read, or no run
            has kept a pair.
    """
    tables: list[Path] = []
    seen: set[Path] = set()
    for folder in runs:
        if folder.resolve() in seen:
            raise DanqingError(f"{folder}: is given twice; to train on its pairs more often, --set epochs=N")
        seen.add(folder.resolve())
        tables += _tables_of(folder)
    with ThreadPoolExecutor(FOOTERS) as pool:
        shards = list(pool.map(_read_footer, tables))
    if not any(shard.rows for shard in shards):
        raise DanqingError(f"{', '.join(map(str, runs))}: no pair was kept, so there is nothing to train on")
    left = sum(shard.rows for shard in shards) if pairs is None else pairs
    used = []
    for shard in shards:
        if left > 0:
            used.append(replace(shard, rows=min(left, shard.rows)))
            left -= shard.rows
    return used


def _tables_of(folder: Path) -> list[Path]:
    """The tables of a run's written shards, in order."""
    run = Run.open(folder)
    if "written" not in run.manifest:
        raise DanqingError(f"{folder}: no complete shards yet; run `danqing write {folder}` first")
    numbers, count = sorted(shard_files(run)), run.manifest["written"].get("shards", 0)
    if len(numbers) < count:
        place = run.table_path(0).parent
        raise DanqingError(
            f"{place}: holds {len(numbers)} of the {count} shards that were written; run `danqing write {folder}` again"
        )
    return [run.table_path(number) for number in numbers]


def _read_footer(table: Path) -> TrainShard:
    try:
        with pq.ParquetFile(table) as file:
            mark = (file.schema_arrow.metadata or {}).get(MARK, b"").decode()
            names, rows = file.schema_arrow.names, file.metadata.num_rows
    except (OSError, pa.ArrowException) as problem:
        raise DanqingError(f"{table}: cannot be read: {problem}; {_write_again(table)}") from None
    if "image" not in names and not (tar := table.with_suffix(".tar")).exists():
        raise DanqingError(f"{tar}: is missing, and {table.name} is there; {_write_again(table)}")
    return TrainShard(table, rows, mark, RECAPTION in names)


def _write_again(table: Path) -> str:
    return f"run `danqing write {table.parent.parent}` again"


def data_digest(shards: Sequence[TrainShard]) -> str:
    """16 hex digits of what is trained on: names, rows and marks of the shards."""
    content = "\n".join(f"{shard.table.name} {shard.rows} {shard.mark}" for shard in shards)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class OpenShard:
    """A shard whose rows can be read in any order, by several threads.

    Args:
        shard: the shard.
        index: folder of the indexes (`write_index`).

    Attributes:
        uids: 32 hex digits of each pair.
    """

    def __init__(self, shard: TrainShard, index: Path) -> None:
        self.shard = shard
        names = pq.read_schema(shard.table).names
        columns = ["uid", *(name for name in (*TEXTS, RECAPTION) if name in names)]
        table = pq.read_table(shard.table, columns=columns)
        self.uids: list[str] = table["uid"].to_pylist()
        self._texts = [table[name] for name in TEXTS if name in names]
        self._recaptions = table[RECAPTION] if RECAPTION in names else None
        tar = shard.table.with_suffix(".tar")
        if "image" in names:
            self._file, self._places = _unpack(shard.table)
        else:
            self._places = np.load(write_index(shard, index))
            self._file = os.open(tar, os.O_RDONLY)

    def image(self, row: int) -> bytes:
        """Reads the encoded picture of a row."""
        offset, size = self._places[row].tolist()
        return os.pread(self._file, size, offset)

    def text(self, row: int, recaption: bool = False) -> str:
        """Returns the text of a row.

        Args:
            row: number of the row.
            recaption: return the row's recaption, if it has one.
        """
        found = self._recaptions[row].as_py() if recaption and self._recaptions is not None else None
        return found or next((text for column in self._texts if (text := column[row].as_py())), "")

    def close(self) -> None:
        """Closes the shard's file."""
        os.close(self._file)


def write_index(shard: TrainShard, folder: Path) -> Path:
    """Writes where the pictures of a tar begin and end, unless that is written; a table needs none.

    Args:
        shard: the shard.
        folder: where indexes are kept.

    Returns:
        The index: int64 (rows, 2), offset and size in bytes.

    Raises:
        DanqingError: the tar has not the pairs of its table.
    """
    tar = shard.table.with_suffix(".tar")
    path = folder / f"{hashlib.sha256(f'{tar} {shard.mark}'.encode()).hexdigest()[:24]}.npy"
    if path.exists() or not tar.exists():
        return path
    layout = Layout()
    samples = samples_of(read_members(tar).members, layout)
    rows = pq.read_metadata(shard.table).num_rows
    if len(samples) != rows:
        raise DanqingError(f"{tar}: {len(samples)} pairs, its table has {rows}; run `danqing write` again")
    places = [
        next((place for name, place in parts.items() if name in layout.image_extensions), (0, 0))
        for _, parts in samples
    ]
    with commit(path) as file:
        np.save(file, np.array(places, np.int64).reshape(-1, 2))
    return path


def _unpack(table: Path) -> tuple[int, np.ndarray]:
    """Copies the pictures of a table to a file without a name in the cache.

    A picture in a table cannot be read without the hundreds of its row group.

    Returns:
        The file's descriptor; offset and size of each picture in it, int64 (rows, 2).
    """
    folder = cache_path() / "train"
    folder.mkdir(parents=True, exist_ok=True)
    sizes: list[int] = []
    with tempfile.TemporaryFile(dir=folder) as file, pq.ParquetFile(table) as opened:
        for batch in opened.iter_batches(UNPACKED_ROWS, columns=["image"]):
            for picture in batch["image"].field("bytes"):
                sizes.append(file.write(picture.as_py() or b""))
        file.flush()
        ends = np.cumsum(np.array(sizes, np.int64))
        return os.dup(file.fileno()), np.stack([ends - sizes, sizes], axis=1)
