"""The kept pairs in the order in which they are written: that of the input, or shuffled.

Input order reads every input shard once and holds one picture at a time. A shuffle cannot: neighbours in the output
come from anywhere in the input, and tars are not made for random access. So all kept pairs are first copied, in input
order, into an unnamed temporary file in OUT; then each output shard gathers its pairs from there. A shuffle thus costs
the free disk space of the kept pairs, one more write and one read of them, and 8 bytes of memory per kept pair.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import naming_full_disk
from danqing.engine.core.similarity import similarity_of
from danqing.engine.core.storage import RemotePath, folder_for_temporary_files, look_up
from danqing.engine.run.folder import Run
from danqing.engine.run.recaptions import ALIGNMENT_DISTANCE, EMPTY, RECAPTION_ALIGNMENT, recaptions_table
from danqing.engine.sources import Layout, Sample, Shard, Source, open_shard
from danqing.engine.write.formats import image_extension
from danqing.engine.write.output import InputVerdicts, Part, cut, max_pixels, starts_of

RECAPTION = "recaption"
GROUP_ROWS = 256
"""Pairs that are copied, gathered or written together."""
IMAGE, EXTENSION = "danqing.image", "danqing.image_extension"
"""Columns of the temporary file of a shuffle, beside those of the scores."""


class Order(Protocol):
    """The kept pairs in output order; ranges count from 0."""

    def table(self, first: int, last: int) -> pa.Table:
        """The scores of a range of pairs, with the columns that WRITE adds; one schema for all ranges."""

    def samples(self, first: int, last: int) -> Iterator[Sample]:
        """The pairs of a range, each with an extension that a file can have (`formats.image_extension`)."""


class InputOrder:
    """The kept pairs in the order of the input.

    Ranges that follow one another read the input once; a range that does not continue the last one reads its first
    input shard from the start.
    """

    def __init__(self, run: Run, verdicts: list[InputVerdicts]) -> None:
        self.run, self.verdicts, self.starts = run, verdicts, starts_of(verdicts)
        self.schema = kept_schema(run, any(part.recaptions for part in verdicts))
        self._max_pixels = max_pixels(run)
        self._table: tuple[int, pa.Table] | None = None
        self._reading: Iterator[Sample] = iter(())
        self._at: tuple[int, int] | None = None

    def check(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Opens the input shards of ranges of pairs, without reading pictures.

        Raises:
            DanqingError: an input is missing, cannot be read, or has another number of samples than were scored.
        """
        layout = self.run.layout
        shards = self.run.shards
        look_up(shard.path for shard in shards)
        for number in sorted({part.shard for first, last in ranges for part in cut(self.starts, first, last)}):
            if isinstance(shards[number].path, RemotePath):  # counting samples would download it
                check_size(shards[number])
            else:
                open_scored(shards[number], layout, self.verdicts[number].rows)

    def table(self, first: int, last: int) -> pa.Table:
        parts = cut(self.starts, first, last)
        return pa.concat_tables([self._kept_of(part).slice(part.first, part.last - part.first) for part in parts])

    def _kept_of(self, part: Part) -> pa.Table:
        """The kept scores of an input shard; the last one is remembered, because several ranges may need it."""
        if self._table is None or self._table[0] != part.shard:
            self._table = part.shard, self._kept(part.shard)
        return self._table[1]

    def _kept(self, number: int) -> pa.Table:
        """The scores of an input shard's kept rows."""
        verdicts = pq.read_table(self.run.verdicts_path(number), columns=["keep", "group"])
        scores = pq.read_table(self.run.scores_path(number)).filter(verdicts["keep"])
        kept = _extended(scores, verdicts["group"].filter(verdicts["keep"]))
        return _recaptioned(kept, recaptions_table(self.run, number)) if RECAPTION in self.schema.names else kept

    def samples(self, first: int, last: int) -> Iterator[Sample]:
        for part in cut(self.starts, first, last):
            if self._at != (part.shard, part.first):
                self._reading = self._read(part)
            self._at = None  # unknown, if the caller stops before the end of the range
            yield from islice(self._reading, part.last - part.first)
            self._at = part.shard, part.last

    def _read(self, part: Part) -> Iterator[Sample]:
        """Reads the kept pairs of an input shard from the pair `part.first` on.

        Raises:
            DanqingError: the input was changed since it was scored.
        """
        shard = self.run.shards[part.shard]
        kept = self._kept_of(part)
        source = open_scored(shard, self.run.layout, self.verdicts[part.shard].rows)
        columns = ["row", "uid", *({"image_hash"} & {*kept.column_names})]
        wanted = iter(kept.select(columns).slice(part.first).to_pylist())
        record = next(wanted, None)
        for row, sample in enumerate(source):
            if record is None:
                return
            if row == record["row"]:
                if sample.uid != record["uid"] or sample.image_hash != record.get("image_hash", sample.image_hash):
                    raise DanqingError(f"{shard.path}: row {row} ({sample.key}) was changed since it was scored")
                yield replace(sample, image_extension=image_extension(sample, self._max_pixels))
                record = next(wanted, None)
        if record is not None:
            raise DanqingError(f"{shard.path}: ends before row {record['row']}; the file was changed since")


def kept_schema(run: Run, recaptions: bool = False) -> pa.Schema:
    """The schema of the scores of kept pairs, with the columns that WRITE adds, for all shards of a scored run."""
    scores = pq.read_schema(run.scores_path(0)).empty_table()  # all shards have this schema (`settling`)
    table = _extended(scores, pa.array([], pa.int64()))
    return (_recaptioned(table, EMPTY) if recaptions else table).schema


def open_scored(shard: Shard, layout: Layout, rows: int) -> Source:
    """Opens an input shard again after it was scored.

    Args:
        shard, layout: see `open_shard`.
        rows: number of rows that were scored.

    Raises:
        DanqingError: the input is missing, cannot be read, or has another number of samples.
    """
    check_size(shard)
    source = open_shard(shard, layout)
    if len(source) != rows:
        raise DanqingError(f"{shard.path}: has {len(source)} samples, {rows} were scored; the file was changed since")
    return source


def check_size(shard: Shard) -> None:
    """Checks that an input shard exists and, if it is a whole remote file, that its size is unchanged.

    Raises:
        DanqingError: it is missing, or its size has changed since it was scored.
    """
    if not shard.path.exists():
        raise DanqingError(f"{shard.path}: is missing; the pictures of this run are read from it")
    if isinstance(shard.path, RemotePath) and shard.rows is None and shard.path.stat().st_size != shard.bytes:
        raise DanqingError(f"{shard.path}: has another size than when it was scored; the file was changed since")


def _extended(scores: pa.Table, group: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Adds the columns that WRITE adds to the scores."""
    if ALIGNMENT_DISTANCE in scores.column_names:
        position = scores.column_names.index(ALIGNMENT_DISTANCE) + 1
        scores = scores.add_column(position, "similarity", similarity_of(scores[ALIGNMENT_DISTANCE]))
    return scores.append_column("group", group).replace_schema_metadata(None)


def _recaptioned(kept: pa.Table, recaptions: pa.Table) -> pa.Table:
    """Adds the recaptions whose outcome is success to the scores of kept pairs, null for the others."""
    names = recaptions.column_names
    text = "recaption_text_clean" if "recaption_text_clean" in names else RECAPTION
    found = recaptions.filter(pc.equal(recaptions["outcome"], "success"))
    at = pc.index_in(kept["row"], value_set=found["row"])
    kept = kept.append_column(RECAPTION, found[text].take(at).cast(pa.string()))
    if ALIGNMENT_DISTANCE not in kept.column_names:
        return kept
    cosine = found[RECAPTION_ALIGNMENT].take(at) if RECAPTION_ALIGNMENT in names else pa.nulls(len(kept), pa.float32())
    return kept.append_column(RECAPTION_ALIGNMENT, cosine)


class Shuffled:
    """The kept pairs in the order of a seeded permutation.

    The permutation is NumPy's `RandomState(seed).permutation(pairs)`, whose values NumPy keeps from version to version.

    Args:
        source: the pairs in input order; copied to a temporary file in `folder`, which is never visible there.
        seed: of the permutation.
        folder: a folder with room for the kept pairs.
    """

    def __init__(self, source: InputOrder, seed: int, folder: Path) -> None:
        pairs = source.starts[-1]
        self._places = np.random.RandomState(seed).permutation(pairs)
        self._columns = source.schema.names
        schema = source.schema.append(pa.field(IMAGE, pa.large_binary())).append(pa.field(EXTENSION, pa.string()))
        place = folder_for_temporary_files(folder)
        with naming_full_disk(place), tempfile.TemporaryFile(dir=place) as file:
            with pa.ipc.new_file(file, schema) as out:
                for first in range(0, pairs, GROUP_ROWS):
                    last = min(first + GROUP_ROWS, pairs)
                    samples = list(source.samples(first, last))
                    images = pa.array([sample.image for sample in samples], pa.large_binary())
                    extensions = pa.array([sample.image_extension for sample in samples], pa.string())
                    columns = [*source.table(first, last).columns, images, extensions]
                    out.write_table(pa.table(columns, schema=schema).combine_chunks(), GROUP_ROWS)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._file = pa.ipc.open_file(pa.py_buffer(mapped))

    def table(self, first: int, last: int) -> pa.Table:
        return self._gather(first, last, self._columns)

    def samples(self, first: int, last: int) -> Iterator[Sample]:
        for start in range(first, last, GROUP_ROWS):
            columns = ["key", IMAGE, EXTENSION]
            for record in self._gather(start, min(start + GROUP_ROWS, last), columns).to_pylist():
                yield Sample(record["key"], record[IMAGE], record[EXTENSION], "")

    def _gather(self, first: int, last: int, columns: list[str]) -> pa.Table:
        """Reads rows of the temporary file, which is mapped into memory: only the pages that hold them."""
        places = self._places[first:last]
        order = np.argsort(places)
        groups, starts = np.unique(places[order] // GROUP_ROWS, return_index=True)
        parts = [
            pa.Table.from_batches([self._file.get_batch(int(group)).select(columns)]).take(rows - group * GROUP_ROWS)
            for group, rows in zip(groups, np.split(places[order], starts[1:]), strict=True)
        ]
        return pa.concat_tables(parts).take(np.argsort(order)).combine_chunks()
