"""Batch: the rows that a stage processes in one call, as named columns of equal length."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from danqing.engine.core.text_column import TextColumn

Values = Any
"""An array whose first axis is the rows, a `TextColumn`, or a list of Python objects (encoded bytes, pictures)."""


@dataclass
class Batch:
    """Columns by name. A stage adds columns and changes no others.

    The columns `shard` and `row` (int) identify a row. `error` is None, or the reason why the row leaves the pipeline.

    >>> batch = Batch({"row": np.arange(3), "caption": TextColumn.of(["a", "b", "c"])})
    >>> batch.take(np.array([True, False, True]))["caption"].to_pylist()
    ['a', 'c']
    """

    columns: dict[str, Values] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns["row"])

    def __getitem__(self, name: str) -> Values:
        return self.columns[name]

    def __setitem__(self, name: str, column: Values) -> None:
        if len(column) != len(self):
            raise ValueError(f"column {name!r} has {len(column)} rows, the batch {len(self)}")
        self.columns[name] = column

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def bytes(self, names: Iterable[str]) -> int:
        """Returns the size in bytes of the named columns; columns that the batch does not have count as 0."""
        return sum(_bytes(self.columns[name]) for name in names if name in self.columns)

    def drop(self, names: Iterable[str]) -> None:
        """Removes the named columns; columns that the batch does not have are skipped."""
        for name in names:
            self.columns.pop(name, None)

    def texts_on_host(self, needed: Container[str] = ()) -> Batch:
        """Returns the batch with its columns of text on the host only, except those that are `needed` on the device."""
        texts = {name: column for name, column in self.columns.items() if isinstance(column, TextColumn)}
        return Batch(self.columns | {name: text.on_host() for name, text in texts.items() if name not in needed})

    def take(self, rows: np.ndarray) -> Batch:
        """Returns the given rows as a new batch.

        Args:
            rows: int (count,) positions, in any order, or bool (len(self),).
        """
        positions = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Batch({name: _take(column, positions) for name, column in self.columns.items()})

    def slice(self, start: int, stop: int) -> Batch:
        """Returns the rows `start` to `stop` (exclusive); arrays are views."""
        return Batch({name: column[start:stop] for name, column in self.columns.items()})

    @staticmethod
    def concat(batches: Sequence[Batch]) -> Batch:
        """Joins batches that have the same columns."""
        if len(batches) == 1:
            return batches[0]
        return Batch({name: _concat([b[name] for b in batches]) for name in batches[0].columns})


def _bytes(column: Values) -> int:
    if hasattr(column, "nbytes"):
        return int(column.nbytes)
    if isinstance(column, str):
        return len(column.encode("utf-8", "surrogatepass"))
    return sum(map(_bytes, column)) if isinstance(column, list) else len(column) if isinstance(column, bytes) else 0


def _take(column: Values, positions: np.ndarray) -> Values:
    if isinstance(column, TextColumn):
        return column.take(positions)
    return [column[i] for i in positions.tolist()] if isinstance(column, list) else column[positions]


def _concat(columns: Sequence[Values]) -> Values:
    if isinstance(columns[0], TextColumn):
        return TextColumn.concat(columns)
    if isinstance(columns[0], list):
        return [item for column in columns for item in column]
    return np.concatenate(columns)


def pack(batches: Iterable[Batch], capacity: float, weights: Any) -> Iterator[Batch]:
    """Regroups a stream of batches into full batches, without changing the order of the rows.

    Args:
        batches: batches of any size, which may be empty.
        capacity: largest sum of weights in a batch. A row that weighs more gets a batch of its own.
        weights: Batch → float (rows,), the weight of each row.

    Yields:
        Batches that are not empty.
    """
    waiting: list[Batch] = []
    total = 0.0
    for batch in batches:
        start, of_rows = 0, weights(batch)
        while start < len(batch):
            totals = np.cumsum(np.append(total, of_rows[start:]))[1:]
            count = int(np.searchsorted(totals, capacity, side="right")) or int(not waiting)
            if count:
                waiting.append(batch.slice(start, start + count))
                start, total = start + count, totals[count - 1]
            if start < len(batch):
                yield Batch.concat(waiting)
                waiting, total = [], 0.0
    if waiting:
        yield Batch.concat(waiting)
