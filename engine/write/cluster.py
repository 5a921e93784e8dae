"""WRITE on a Ray cluster: its workers copy output shards (`engine.run.cluster`)."""

from __future__ import annotations

import socket
from pathlib import Path

from danqing.engine.core.progress import Progress, Silent
from danqing.engine.run.cluster import Job, Worker, WorkerSpec, connected, run_on_cluster
from danqing.engine.run.folder import Run
from danqing.engine.write.order import InputOrder
from danqing.engine.write.output import OutputShard, read_verdicts
from danqing.engine.write.writing import WRITERS, copy_shard


class ShardCopier(Worker):
    """A worker that writes output shards of a run.

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

    def work(self, shard: OutputShard) -> None:
        """Writes a shard."""
        copy_shard(self._run, shard, self._order, self._writer, Silent())


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

    def finished(shard: OutputShard, _: None) -> int:
        pairs = shard.last - shard.first
        progress.advance(pairs)
        return pairs

    def given_up(lost: list[OutputShard]) -> str:
        numbers = ", ".join(f"{shard.number:05d}" for shard in lost)
        return (
            f"output shards of {run.folder}, which are not written: {numbers}; all others are. Find the cause, then "
            "run `danqing write` again"
        )

    spec = WorkerSpec(ShardCopier, (run.folder.resolve(), output_format), {"CPU": 1})
    with connected(address) as ray:
        run_on_cluster(ray, Job(address, spec, shards, finished, given_up), progress)
