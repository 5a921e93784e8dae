"""The columns that criteria read: of a run on disk, a shard at a time, or of rows in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from danqing.engine.core.errors import DanqingError
from danqing.engine.decide.feature_files import map_run
from danqing.engine.decide.uids import digests_of, numbers_of
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import SCORE_AGAIN, reading, scores_schema


class Columns(Protocol):
    """Values of rows. `rows` are (n,), ascending positions in the run (`position_type`)."""

    def take(self, name: str, rows: np.ndarray | None = None) -> pa.ChunkedArray:
        """The values of some rows in a column, as they are stored; of all rows for None."""
        ...

    def keys(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Numbers that are equal for equal values of some rows (`keys_of`)."""
        ...

    def uids(self, rows: np.ndarray) -> np.ndarray:
        """The uids of some rows: uint64 (n, 2)."""
        ...

    def features(self, rows: np.ndarray) -> tuple[Sequence[np.ndarray], np.ndarray]:
        """The features of some rows that have them.

        Returns:
            Blocks, float16 (rows, dimension) each, memory-mapped if they are on disk; and each row's place in them, one
            after the other, int64 (n,).
        """
        ...


@dataclass(frozen=True)
class TableColumns:
    """Columns in memory.

    Attributes:
        columns: name → the values of all rows; `feature_row` is each row's place in `blocks`, -1 without features.
        blocks: the features, float16 (rows, dimension) each.
    """

    columns: Mapping[str, pa.ChunkedArray]
    blocks: Sequence[np.ndarray] = ()

    def take(self, name: str, rows: np.ndarray | None = None) -> pa.ChunkedArray:
        return self.columns[name] if rows is None else self.columns[name].take(pa.array(rows))

    def keys(self, name: str, rows: np.ndarray) -> np.ndarray:
        return keys_of(self.take(name, rows))

    def uids(self, rows: np.ndarray) -> np.ndarray:
        return numbers_of(self.take("uid", rows))

    def features(self, rows: np.ndarray) -> tuple[Sequence[np.ndarray], np.ndarray]:
        return self.blocks, self.take("feature_row", rows).to_numpy()


class StoredColumns:
    """The columns of a scored run. Only the values that are asked for stay in memory; every call reads the files.

    Args:
        run: the run.
        sizes: number of rows of each shard.
    """

    def __init__(self, run: Run, sizes: Sequence[int]) -> None:
        self._run, self._numbers = run, [shard.number for shard in run.shards]
        self._begins = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def take(self, name: str, rows: np.ndarray | None = None) -> pa.ChunkedArray:
        rows = np.arange(self._begins[-1]) if rows is None else rows
        chunks = [chunk for _, part in self._parts(name, rows) for chunk in part.chunks]
        if chunks:
            return pa.chunked_array(chunks)
        stored = scores_schema(self._run, self._numbers[0]).field(name).type if self._numbers else pa.string()
        return pa.chunked_array([], stored)

    def keys(self, name: str, rows: np.ndarray) -> np.ndarray:
        out = np.empty(0)
        for place, part in self._parts(name, rows):
            keys = keys_of(part)
            if not place.start:
                out = np.empty((len(rows), *keys.shape[1:]), keys.dtype)
            out[place] = keys
        return out

    def uids(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), 2), np.uint64)
        for place, part in self._parts("uid", rows):
            out[place] = numbers_of(part)
        return out

    def features(self, rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        shards = np.flatnonzero(np.diff(self._cuts(rows)))
        blocks = map_run([self._run.features_path(self._numbers[shard]) for shard in shards], self._run.folder)
        out, begin = np.empty(len(rows), np.int64), 0
        for block, (place, part) in zip(blocks, self._parts("feature_row", rows), strict=True):
            out[place] = part.to_numpy()
            out[place] += begin
            begin += len(block)
        return blocks, out

    def _cuts(self, rows: np.ndarray) -> np.ndarray:
        """The start of each shard among some rows, and the number of rows."""
        return np.searchsorted(rows, self._begins.astype(rows.dtype))  # another type would copy the rows

    def _parts(self, name: str, rows: np.ndarray) -> Iterator[tuple[slice, pa.ChunkedArray]]:
        """Yields the values of the rows of each shard that has some, and their place among all."""
        cuts = self._cuts(rows)
        for shard in np.flatnonzero(np.diff(cuts)):
            place = slice(int(cuts[shard]), int(cuts[shard + 1]))
            column = read_columns(self._run, self._numbers[shard], [name])[name]
            if place.stop - place.start < len(column):
                column = column.take(pa.array(rows[place] - self._begins[shard]))
            yield place, column


def keys_of(column: pa.ChunkedArray) -> np.ndarray:
    """Numbers that are equal for equal values: numbers themselves, (rows,); digests of texts, uint64 (rows, 2).

    The key of an empty text is zero.
    """
    if not pa.types.is_string(column.type):
        numbers: np.ndarray = column.to_numpy()
        return numbers
    keys = digests_of(column)
    keys[pc.equal(pc.binary_length(column), 0).to_numpy()] = 0
    return keys


def read_columns(run: Run, number: int, names: Sequence[str]) -> pa.Table:
    """Reads columns of a shard's scores.

    Raises:
        DanqingError: the file is damaged, or the run has no such column.
    """
    path = run.scores_path(number)
    with reading(path, SCORE_AGAIN), pq.ParquetFile(path) as file:
        if absent := [name for name in names if name not in file.schema_arrow.names]:
            raise DanqingError(f"{path}: the run has no column {absent[0]!r}; score again with a recipe that names it")
        return file.read(list(dict.fromkeys(names)))
