"""The rows of a selection that are in the stages, part by part.

A part is decided and written, in a thread of its own, as soon as its last row has left the stages. Rows of several
parts can share a batch, so the stages run on full batches from the first part to the last.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.core.memory import TEXT_COPIES
from danqing.engine.core.progress import Progress
from danqing.engine.core.text_column import TextColumn
from danqing.engine.select.usable import USABLE, unusable_rows
from danqing.engine.sources.tables import Part

BATCH_ROWS = 1 << 12
"""Rows of a batch as it is read: while the stages work on the last ones of a part, the next part is read. With 16,384,
the peak of 1 M rows is 27 MiB higher, and no CPU time is saved."""


class Judged:
    """The rows of one part with their scores.

    Attributes:
        number: position of the part in the selection.
        part: the rows as read.
        errors: row → why it has no scores.
        columns: name → float64 (rows,), the scores that are numbers (NaN if missing), and `usable`.
    """

    def __init__(self, number: int, part: Part, scores: Mapping[str, pa.DataType], device: Device) -> None:
        self.number, self.part, self.scores = number, part, scores
        self.errors = unusable_rows(device, part.urls, part.has_caption, part.errors)
        texts = [name for name, kind in scores.items() if pa.types.is_string(kind)]
        self.columns = {name: np.full(len(part), np.nan) for name in scores if name not in texts}
        self.columns[USABLE.column] = np.ones(len(part))
        self.columns[USABLE.column][list(self.errors)] = 0
        self._texts: dict[str, list[tuple[np.ndarray, TextColumn]]] = {name: [] for name in texts}
        self._lock = threading.Lock()
        self._missing = len(part)

    def batches(self) -> Iterator[Batch]:
        """Yields the usable rows."""
        usable = np.flatnonzero(self.columns[USABLE.column])
        urls, captions = self.part.urls, self.part.captions
        if len(usable) < len(self.part):
            urls, captions = urls.take(usable), captions.take(usable)
        for start in range(0, len(usable), BATCH_ROWS):
            rows = usable[start : start + BATCH_ROWS]
            stop = start + len(rows)
            batch = Batch({"row": rows, "shard": np.full(len(rows), self.number), "error": [None] * len(rows)})
            batch["url"], batch["caption"] = urls[start:stop], captions[start:stop]
            batch["text_bytes"] = TEXT_COPIES * batch["caption"].lengths()
            yield batch

    def enter(self, batch: Batch) -> None:
        """Takes rows that leave the stages."""
        rows = batch["row"]
        for name, column in self.columns.items():
            if name in batch:
                column[rows] = batch[name]
        for name, parts in self._texts.items():
            if name in batch:
                texts = batch[name]
                parts.append((rows, TextColumn.of(texts) if isinstance(texts, list) else texts))
        if batch["error"].count(None) < len(rows):
            problems = zip(rows.tolist(), batch["error"], strict=True)
            with self._lock:
                self.errors |= {row: problem for row, problem in problems if problem is not None}

    def finish(self, rows: int) -> bool:
        """Counts rows that have left the stages; returns whether they were the last."""
        with self._lock:
            self._missing -= rows
            return self._missing == 0

    def text(self, name: str) -> pa.Array:
        """Returns a text that the stages made: large_string (rows,), null where a row has none."""
        places = self._places(name)
        texts = [pa.array([], pa.large_string()), *(part.arrow() for _, part in self._texts[name])]
        return pa.concat_arrays(texts).take(pa.array(places, mask=places < 0))

    def text_of(self, name: str, rows: np.ndarray) -> TextColumn:
        """Returns a text of some rows, int (count,): on the device if it was made there and every row has one."""
        places = self._places(name)[rows]
        if not len(rows) or (places < 0).any():  # a row that an earlier stage failed can be kept
            return TextColumn.of(self.text(name).take(pa.array(rows)))
        return TextColumn.concat([part for _, part in self._texts[name]]).take(places)

    def _places(self, name: str) -> np.ndarray:
        """Position of each row's text among those of all batches in turn, int64 (rows,); -1 for rows without one."""
        places, count = np.full(len(self.part), -1), 0
        for rows, _ in self._texts[name]:
            places[rows] = np.arange(count, count + len(rows))
            count += len(rows)
        return places

    def problems(self) -> pa.Array:
        """Returns the errors: string (rows,), null for rows without one."""
        rows = np.fromiter(self.errors, np.int64, len(self.errors))
        places = np.full(len(self.part), -1)
        places[rows] = np.arange(len(rows))
        return pa.array(self.errors.values(), pa.string()).take(pa.array(places, mask=places < 0))


class Ledger:
    """Receives the rows of all parts from the stages (`engine.score.loop.RowSink`), and passes on finished parts.

    Args:
        scores: column → type of what the stages compute.
        device: runs the stages.
        progress: receives the number of rows read and finished.
        finished: takes each part whose rows have all left the stages; called by the stages' threads.
    """

    def __init__(
        self, scores: Mapping[str, pa.DataType], device: Device, progress: Progress, finished: Callable[[Judged], None]
    ) -> None:
        self.scores, self.device, self.progress, self.finished = scores, device, progress, finished
        self._open: dict[int, Judged] = {}
        self._lock = threading.Lock()

    def batches(self, parts: Iterable[tuple[int, Part]]) -> Iterator[Batch]:
        """Yields the usable rows of all parts.

        Args:
            parts: each with its number in the selection.
        """
        for number, part in parts:
            judged = self._open[number] = Judged(number, part, self.scores, self.device)
            self._count(judged, len(judged.errors))
            yield from judged.batches()

    def enter(self, batch: Batch, gated_at: str | None = None) -> None:
        """Takes rows that leave the stages."""
        numbers = batch["shard"]
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(batch)]
        for start, stop in pairwise(edges):
            judged, rows = self._open[int(numbers[start])], batch.slice(start, stop)
            judged.enter(rows)
            self._count(judged, stop - start)

    def _count(self, judged: Judged, rows: int) -> None:
        with self._lock:
            self.progress.advance(rows)
        if judged.finish(rows):
            del self._open[judged.number]
            self.finished(judged)
