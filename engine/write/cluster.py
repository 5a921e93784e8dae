"""WRITE on a Ray cluster: its workers copy output shards (`engine.run.cluster`)."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.logs import log_worker_record, records_to
from danqing.engine.core.progress import Progress, Silent
from danqing.engine.run.cluster import WorkerSpec, connected, run_on_cluster
from danqing.engine.run.folder import Run
from danqing.engine.run.work import MAX_DEATHS, Tally, WorkQueue
from danqing.engine.write.order import InputOrder
from danqing.engine.write.output import OutputShard, read_verdicts
from danqing.engine.write.writing import WRITERS, copy_shard

Records = list[tuple[int, str, Mapping[str, Any]]]
"""Log records (`records_to`)."""


class ShardCopier:
    """A worker (`engine.run.cluster.Worker`) that writes output shards of a run.

    Args:
        folder: the run's folder.
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

    def work(self, shard: OutputShard) -> Records:
        """Writes a shard; returns the log records."""
        records: Records = []
        with records_to(lambda *record: records.append(record)):
            copy_shard(self._run, shard, self._order, self._writer, Silent())
        return records


def copy_on_cluster(address: str, run: Run, shards: list[OutputShard], output_format: str, progress: Progress) -> None:
    """Writes output shards on the workers of the Ray cluster at an address, one worker a core.

    Args:
        address: see `connected`.
        run: the run folder. It and the inputs have the same paths on every node.
        shards: the shards to write.
        output_format: name of the writer.
        progress: receives the pairs of all workers, shard by shard.

    Raises:
        DanqingError: a worker raised it, or shards were given up; names them.
    """
    queue, tally = WorkQueue(shards), Tally()

    def finished(worker: str, shard: OutputShard, records: Records) -> None:
        tally.add(worker, shards=1, pairs=shard.last - shard.first)
        for record in records:
            log_worker_record(worker, *record)
        progress.advance(shard.last - shard.first)

    with connected(address) as ray:
        spec = WorkerSpec(ShardCopier, (run.folder.resolve(), output_format), {"CPU": 1})
        run_on_cluster(ray, spec, queue, tally, finished, progress, address)
    tally.write_log()
    if queue.given_up:
        numbers = ", ".join(f"{shard.number:05d}" for shard in queue.given_up)
        raise DanqingError(
            f"{run.folder}: {MAX_DEATHS} workers died at each of these output shards, which are not written: {numbers}"
            "; all others are. Find the cause, then run `danqing write` again"
        )
