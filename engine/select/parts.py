"""The files of a selection: each part is decided and written in a thread of its own.

urls/NNNNN.parquet holds the kept rows of a part, verdicts/NNNNN.parquet all its rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.carried import carried_name
from danqing.engine.core.damage import Damage, to_metadata
from danqing.engine.core.device import Device
from danqing.engine.core.files import commit
from danqing.engine.recipe.reading import Recipe
from danqing.engine.select import libcudf_tables
from danqing.engine.select.ledger import Judged
from danqing.engine.select.libcudf_tables import DeviceTable
from danqing.engine.select.text_plan import CLEAN
from danqing.engine.select.verdicts import decide, verdict_columns
from danqing.engine.sources.tables import Columns, Part

MAX_DAMAGE = 1000
"""Rows of a part that could not be read are listed up to this number; beyond it they are counted."""
SELECTED = {b"danqing.select": b"1"}
"""In the metadata of urls/*.parquet: `text_clean` is the engine's, so another selection replaces it."""


class WriterThread:
    """Decides and writes parts in a thread of its own, one after the other.

    A part is taken when the one before it is written, so memory does not grow if writing is slower than the stages. The
    error of a part is raised when the next one is taken.

    Args:
        write: writes one part.
    """

    def __init__(self, write: Callable[[Judged], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._last: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, "danqing write")

    def __enter__(self) -> WriterThread:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown()
        if error is None:
            self._wait()

    def __call__(self, judged: Judged) -> None:
        """Waits until the part before is written, and takes a part."""
        with self._lock:
            self._wait()
            self._last = self._pool.submit(self._write, judged)

    def _wait(self) -> None:
        if self._last:
            self._last.result()


class PartFiles:
    """Decides the parts of a selection and writes their files.

    Args:
        folder: of the selection.
        recipe: the criteria, `USABLE` first.
        columns: names of the URL and the caption in the input.
        device: the criteria are judged on it.
    """

    def __init__(self, folder: Path, recipe: Recipe, columns: Columns, device: Device) -> None:
        self.folder, self.recipe, self.columns, self.device = folder, recipe, columns, device

    def path(self, kind: str, number: int) -> Path:
        """Returns the path of a part's file in `urls` or `verdicts`."""
        return self.folder / kind / f"{number:05d}.parquet"

    def is_written(self, number: int) -> bool:
        """Whether a part is finished: its verdicts, which are written last, are there."""
        return self.path("verdicts", number).exists()

    def write(self, judged: Judged) -> None:
        """Decides and writes a part."""
        with self.device.entered():
            dropped_by = decide(judged, self.recipe, self.device)
            self._write_kept(judged, dropped_by < 0)
            self._write_verdicts(judged, dropped_by)  # last: the part is finished

    def _write_kept(self, judged: Judged, keep: np.ndarray) -> None:
        """Writes the kept rows with all input columns, and the clean caption."""
        path, rows = self.path("urls", judged.number), judged.part.table
        metadata = rows.schema.metadata or {}
        names = stored_names(rows.column_names, metadata)
        clean = judged.text_of(CLEAN, np.flatnonzero(keep))
        if isinstance(rows, DeviceTable):
            libcudf_tables.write_kept(path, rows, names, keep, (CLEAN, clean), metadata | SELECTED, self.device)
            return
        table = rows.select(list(names)).rename_columns(list(names.values())).filter(pa.array(keep))
        table = table.append_column(CLEAN, clean.arrow().cast(pa.string()))
        table = table.replace_schema_metadata(metadata | SELECTED)
        write_table(path, table, (self.columns.url, self.columns.caption, CLEAN))

    def _write_verdicts(self, judged: Judged, dropped_by: np.ndarray) -> None:
        """Writes each row's place in the input, URL, caption, verdict and scores."""
        path, part = self.path("verdicts", judged.number), judged.part
        found = verdict_columns(judged, dropped_by, self.recipe)  # kept rows have the clean caption in urls/
        on_device = isinstance(part.table, DeviceTable)
        columns = {
            "file": pa.repeat(pa.scalar(part.file.name, pa.string()), len(part)),
            "row": pa.array(np.arange(part.first, part.first + len(part))),
            "url": part.table[self.columns.url] if on_device else part.urls.arrow().cast(pa.string()),
            "caption": part.table[self.columns.caption] if on_device else part.captions.arrow().cast(pa.string()),
            "keep": found.pop("keep"),
            "dropped_by": found.pop("dropped_by"),
        }
        if "uid" in part.table.column_names:
            columns["uid"] = part.table["uid"]
        metadata = to_metadata(damage_of(part))
        if on_device:
            libcudf_tables.write_verdicts(path, columns | found, metadata, self.device)
            return
        table = pa.table(columns | found).replace_schema_metadata(metadata)
        write_table(path, table, ("row", "url", "caption", "uid"))


def stored_names(names: Sequence[str], metadata: Mapping[bytes, bytes]) -> dict[int, str]:
    """Chooses the names of a table's columns in urls/, beside which the clean caption gets its own.

    Args:
        names: of the columns as read.
        metadata: of the table as read.

    Returns:
        Position of each column that is stored → its name.
    """
    if SELECTED.items() <= metadata.items():  # an earlier selection's clean caption is replaced
        return {position: name for position, name in enumerate(names) if name != CLEAN}
    return dict(enumerate(_distinct(carried_name(name, (CLEAN,)) for name in names)))


def damage_of(part: Part) -> list[Damage]:
    """Lists the rows of a part that could not be read, up to `MAX_DAMAGE`."""
    file, found = part.file.path, []
    for text in islice(part.errors.values(), MAX_DAMAGE):
        place, _, problem = text.partition(": ")
        found.append(Damage.at(file, place, problem))
    if more := len(part.errors) - len(found):
        found.append(Damage.at(file, "", f"{more:,} more rows cannot be read; see the column error of verdicts/"))
    return found


def _distinct(names: Iterable[str]) -> list[str]:
    """Appends `_` to names that come again: Arrow reads tables with equal names, and no tool reads them by name."""
    out: list[str] = []
    for name in names:
        while name in out:
            name += "_"
        out.append(name)
    return out


def write_table(path: Path, table: pa.Table, texts: Collection[str]) -> None:
    """Writes a table in the format that every reader of Parquet knows, compressed with Snappy.

    Args:
        path: the file.
        table: the content.
        texts: columns whose values hardly ever repeat. Neither they nor floats get a dictionary, which costs time.
    """
    dictionary: bool | list[str] = [
        field.name for field in table.schema if field.name not in texts and not pa.types.is_floating(field.type)
    ]
    if any(pa.types.is_nested(kind) for kind in table.schema.types):  # they would have to be named leaf by leaf
        dictionary = True
    with commit(path) as file:
        pq.write_table(table, file, compression="snappy", use_dictionary=dictionary)
