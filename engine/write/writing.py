"""WRITE: copies the original bytes of the kept pairs into new shards.

A picture is copied, not encoded again. The clean caption is written; the input's own stays beside it. Output shards
have a fixed number of pairs, whatever the sizes of the input shards. A shard is written if its table is there with the
mark of the present verdicts (`engine.write.products`); its files are replaced one by one, so nothing is lost before
its successor is complete. Inputs are checked before anything is replaced, so that a missing one leaves OUT as it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit, write_json
from danqing.engine.core.logs import event, log
from danqing.engine.core.progress import Progress
from danqing.engine.core.registry import Registry
from danqing.engine.core.storage import remove_tree
from danqing.engine.run.claims import AnyPart, Claims, forget_claims
from danqing.engine.run.folder import RECAPTIONED, Run
from danqing.engine.run.part import Share
from danqing.engine.sources import Sample
from danqing.engine.write.agreement import agree, forget_agreement
from danqing.engine.write.card import write_cards
from danqing.engine.write.formats import Pairs, Writer, member_names, write_table
from danqing.engine.write.order import GROUP_ROWS, InputOrder, Order, Shuffled
from danqing.engine.write.output import (
    PARQUET,
    WEBDATASET,
    InputVerdicts,
    OutputShard,
    WriteOptions,
    decision_digest,
    output_shards,
    recaptions_digest,
    verdicts_digest,
)
from danqing.engine.write.products import (
    COUNTS,
    EXTENSIONS,
    MARK,
    SIZES,
    STALE,
    forget_written,
    is_aside,
    is_written,
    kept_uids,
    move_summaries,
    restore,
    shard_files,
    sizes,
    uids_are_current,
)

WRITERS: Registry[Writer] = Registry(
    "danqing.writers",
    {
        WEBDATASET: "danqing.engine.write.formats:write_webdataset",
        PARQUET: "danqing.engine.write.formats:write_parquet",
    },
)


Copy = Callable[[Run, list[OutputShard], str, Progress], None]
"""Writes output shards in a format elsewhere (`engine.write.cluster.copy_on_cluster`)."""


def write(
    run: Run,
    verdicts: list[InputVerdicts],
    progress: Progress,
    options: WriteOptions,
    part: Share | None = None,
    copy: Copy | None = None,
) -> bool:
    """Writes shards/, kept_uids.npy and README.md of the run's verdicts; files that are up to date stay.

    Args:
        run: a decided run.
        verdicts: its verdicts (`read_verdicts`).
        progress: counts the pairs that are copied.
        options: format, size and order of the shards.
        part: the shards to write; None for all.
        copy: writes shards elsewhere; None: this process writes them.

    Returns:
        Whether all shards are written; False if those of other parts are missing.

    Raises:
        DanqingError: no such writer, an input is missing or was changed since it was scored, a file that was read back
            differs from what was written, or parts of this writing have other options.
    """
    writer, in_one_process = WRITERS.named(options.output_format), part is None and copy is None
    if options.shuffle is not None and not in_one_process:
        raise DanqingError("--shuffle: one process copies all pairs into the new order; leave --part and --ray out")
    shards = output_shards(verdicts, options)
    kept = sum(found.kept for found in verdicts)
    note = {
        "verdicts": verdicts_digest(verdicts),
        "recipe_hash": run.manifest["decided"]["recipe_hash"],
        "output_format": options.output_format,
        "shard_size": options.shard_size,
        "shuffle": options.shuffle,
        "shards": len(shards),
        "kept": kept,
    }
    if recaptions := recaptions_digest(verdicts):
        note["recaptions"] = recaptions
    elif kept and RECAPTIONED in run.manifest:
        progress.say(
            f"{run.folder} has recaptions, but not for all of its kept pairs, so none are written; `danqing recaption "
            f"{run.folder}` asks for the missing ones"
        )
    own = part.block(shards) if part else shards
    with run.locked_manifest(part):
        if part:
            forget_claims(run.folder)
        missing = [shard for shard in own if not is_written(run.table_path(shard.number), shard)]
        surplus = [path for number, files in shard_files(run).items() if number >= len(shards) for path in files]
        copied = [shard for shard in missing if not is_aside(run, shard)]
        if part and missing:
            agree(run, part, options, note["verdicts"])
        if copied:
            source = InputOrder(run, verdicts)
            whole = options.shuffle is not None  # a shuffle reads every input
            source.check([(0, kept)] if whole else [(shard.first, shard.last) for shard in copied])
        if not part:
            forget_agreement(run)
        replaces = run.manifest.get("written") != note
        if missing or surplus:
            forget_written(run)
        if replaces and (not in_one_process or len(copied) < len(missing)):
            move_summaries(run)
        for shard in missing:
            if shard not in copied:
                restore(run, shard)
    if copied:
        progress.expect(sum(shard.last - shard.first for shard in copied), sum(shard.bytes for shard in run.shards))
        if copy:
            copy(run, copied, options.output_format, progress)
        else:
            order = source if options.shuffle is None else Shuffled(source, options.shuffle, run.folder)
            own_writer = _replacing(writer, run) if replaces and in_one_process else writer
            for shard in _claimed(run, part, copied, progress) if isinstance(part, AnyPart) else copied:
                copy_shard(run, shard, order, own_writer, progress)
    with run.locked_manifest(part):
        if part and not all(is_written(run.table_path(shard.number), shard) for shard in shards):
            return False
        if missing and run.manifest.get("written") == note:  # another part has ended since this one removed `written`
            return True
        for path in surplus:
            path.unlink(missing_ok=True)
        _write_summaries(run, verdicts, shards, options)
        remove_tree(run.folder / STALE)
        forget_agreement(run)
        if run.manifest.get("written") != note:
            run.manifest["written"] = note
            run.save()
    return True


def _claimed(run: Run, part: AnyPart, shards: list[OutputShard], progress: Progress) -> Iterator[OutputShard]:
    """Yields the shards that this process claims; ends when all are written."""

    def is_done(shard: OutputShard) -> bool:
        return is_written(run.table_path(shard.number), shard)

    def unfinished() -> list[OutputShard]:
        there = shard_files(run)  # one listing; object storage would be asked for each missing shard
        return [shard for shard in shards if shard.number not in there or not is_done(shard)]

    with closing(Claims(run.folder, "shards", part, unfinished, is_done, progress.say).rounds()) as rounds:
        for claimed in rounds:
            yield from claimed


def _write_summaries(run: Run, verdicts: list[InputVerdicts], shards: list[OutputShard], options: WriteOptions) -> None:
    """Writes the files that describe all shards: sizes.json, kept_uids.npy and the cards."""
    _write_counts(run, shards)
    uids = kept_uids(run)
    if not uids_are_current(run, uids):
        with commit(run.folder / "kept_uids.npy") as file:
            np.save(file, uids)
    tables = [run.table_path(shard.number) for shard in shards]
    write_cards(run, options, tables, decision_digest(run, verdicts))


def _replacing(writer: Writer, run: Run) -> Writer:
    """Makes a writer move the summaries of the replaced shards aside after its last pair, before its file is named."""

    def moved() -> Iterator[Any]:
        move_summaries(run)
        yield from ()

    def write_shard(shard: Path, kept: pa.Table, pairs: Pairs) -> None:
        writer(shard, kept, chain(pairs, moved()))

    return write_shard


def copy_shard(run: Run, shard: OutputShard, order: Order, writer: Writer, progress: Progress) -> None:
    """Writes one output shard; its table, which marks it as complete, is written last."""
    started = time.monotonic()
    kept = order.table(shard.first, shard.last).replace_schema_metadata({MARK: shard.mark})
    if len(kept) != shard.last - shard.first:
        raise DanqingError(
            f"{run.folder}: scores and verdicts have different rows; run `danqing decide {run.folder}` again"
        )
    _write_shard(run.table_path(shard.number), kept, order.samples(shard.first, shard.last), writer, progress)
    name, seconds = run.table_path(shard.number).stem, time.monotonic() - started
    figures = event("shard.written", shard=name, pairs=len(kept), seconds=round(seconds, 3))
    log.info("wrote %s: %d pairs", name, len(kept), extra=figures)


def _write_shard(table: Path, kept: pa.Table, samples: Iterator[Sample], writer: Writer, progress: Progress) -> None:
    before = {path: path.stat().st_ino for path in _files_of(table)}
    extensions: set[str] = set()
    pairs = _pairs(kept, samples, extensions, progress)
    writer(table.with_suffix(""), kept, pairs)
    if next(pairs, None) is not None:
        raise DanqingError(f"{table}: the writer did not take all pairs of the shard; report this to its package")
    written = [path for path in _files_of(table) if path.stat().st_ino != before.get(path)]
    if table not in written:
        found = {SIZES: sizes(written), EXTENSIONS: json.dumps(sorted(extensions))}
        write_table(kept.replace_schema_metadata({**kept.schema.metadata, **found}), table)
        written.append(table)
    for path in _files_of(table):
        if path not in written:  # another format's
            path.unlink()


def _files_of(table: Path) -> list[Path]:
    return sorted(table.parent.glob(f"{table.stem}.*"))


def _pairs(
    kept: pa.Table, samples: Iterator[Sample], extensions: set[str], progress: Progress
) -> Iterator[tuple[Sample, dict[str, Any]]]:
    """Joins pairs and scores; a sample's key becomes its name in the output shard. Adds the extensions to a set."""
    names = iter(member_names(kept["key"].to_pylist()))
    for first in range(0, len(kept), GROUP_ROWS):
        records = kept.slice(first, GROUP_ROWS).to_pylist()
        for record, sample in zip(records, islice(samples, len(records)), strict=True):
            extensions.add(sample.image_extension)
            yield replace(sample, key=next(names)), record
        progress.advance(len(records))


def _write_counts(run: Run, shards: list[OutputShard]) -> None:
    """Writes sizes.json, from which open_clip learns how many pairs each tar holds; removes one without tars."""
    counts = {run.tar_path(shard.number).name: shard.last - shard.first for shard in shards}
    path = run.tar_path(0).with_name(COUNTS)
    if all(path.with_name(name).exists() for name in counts) and counts:
        write_json(path, counts)
    else:
        path.unlink(missing_ok=True)
