"""WRITE on a Ray cluster: its workers copy output shards (`engine.run.cluster`)."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.logs import log_of, records_to
from danqing.engine.core.progress import Progress, Silent
from danqing.engine.run.cluster import Workers, connected, run_on_cluster
from danqing.engine.run.folder import Run
from danqing.engine.run.work import MAX_DEATHS, Tally, WorkQueue
from danqing.engine.write.formats import Writer
from danqing.engine.write.order import InputOrder
from danqing.engine.write.output import InputVerdicts, OutputShard, WriteOptions, read_verdicts
from danqing.engine.write.writing import WRITERS, copy_shard


class Copied(NamedTuple):
    """What a worker says of an output shard: its log (`records_to`)."""

    records: list[tuple[int, str, Mapping[str, Any]]]


class ShardCopier:
    """A worker that writes output shards of a run (`engine.run.cluster.Worker`).

    Args:
        folder: of the run.
        output_format: name of the writer.
    """

    def __init__(self, folder: Path, output_format: str) -> None:
        self._folder, self._format = folder, output_format

    def open(self) -> str:
        """Reads the verdicts."""
        self._run = Run.open(self._folder)
        self._order = InputOrder(self._run, read_verdicts(self._run))
        self._writer = WRITERS.named(self._format)
        return socket.gethostname()

    def work(self, shard: OutputShard) -> Copied:
        """Writes a shard."""
        copied = Copied([])
        with records_to(lambda *record: copied.records.append(record)):
            copy_shard(self._run, shard, self._order, self._writer, Silent())
        return copied


def copy_on_cluster(
    address: str,
    run: Run,
    verdicts: list[InputVerdicts],
    shards: list[OutputShard],
    options: WriteOptions,
    progress: Progress,
    writer: Writer,
) -> None:
    """Writes output shards on the workers of the cluster at an address; each has one core.

    Args:
        address: see `connected`.
        run, verdicts, shards, options, progress, writer: see `copy_shards`.

    Raises:
        DanqingError: a worker failed with one, or shards were given up; names them.
    """
    queue, tally = WorkQueue(shards), Tally()

    def finished(worker: str, shard: OutputShard, copied: Copied) -> None:
        tally.add(worker, shards=1, pairs=shard.last - shard.first)
        for record in copied.records:
            log_of(worker, *record)
        progress.advance(shard.last - shard.first)

    with connected(address) as ray:
        workers = Workers(ShardCopier, (run.folder.resolve(), options.output_format), {"CPU": 1})
        run_on_cluster(ray, workers, queue, tally, finished, progress)
    tally.write_log()
    if queue.given_up:
        numbers = ", ".join(f"{shard.number:05d}" for shard in queue.given_up)
        raise DanqingError(
            f"{run.folder}: {MAX_DEATHS} workers died at each of these output shards, which are not written: {numbers}"
            "; all others are. Look for the cause, then run `danqing write` again"
        )
