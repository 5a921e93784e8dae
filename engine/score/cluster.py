"""SCORE on a Ray cluster, with a worker on every GPU of all nodes (`engine.run.cluster`)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from danqing.engine.core.device import kind_of
from danqing.engine.core.progress import Progress
from danqing.engine.core.spans import Span, Spans
from danqing.engine.run.cluster import Job, Worker, WorkerSpec, connected, device_name, resources_of, run_on_cluster
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.run.work import Tally
from danqing.engine.score.metrics import serve_metrics
from danqing.engine.score.workers import note_refused, scoring
from danqing.engine.sources import Shard


class Scored(NamedTuple):
    """The result of a worker for one shard; its files are in the run's folder.

    Attributes:
        rows: number of rows.
        spans: counts and times of the stages.
        lines: lines for the user.
        refused: engines that could not be opened, by role.
    """

    rows: int
    spans: dict[str, Span]
    lines: list[str]
    refused: dict[str, str]


class ShardScorer(Worker):
    """A worker that scores shards of a run, and collects its progress (`Progress`).

    Args:
        folder: the run's folder.
        settings: the device (among those that Ray shows the worker), the threads, and the limits of one worker.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._settings = folder, settings
        self._open = ExitStack()
        self._rows, self._lines = 0, list[str]()

    def open(self) -> str:
        """Opens the device. The models are loaded with the first shard and stay loaded."""
        self._run = Run.open(self._folder)
        self._score = self._open.enter_context(scoring(self._run, self._settings, self))
        return device_name(self._settings.device)

    def work(self, shard: Shard) -> Scored:
        """Scores a shard."""
        spans = self._score(iter([shard]))
        refused = dict(self._run.manifest.get("refused_engines", {}))
        scored = Scored(self._rows, spans.sums(), self._lines, refused)
        spans.clear()
        self._rows, self._lines = 0, []
        return scored

    def expect(self, rows: int, size: int) -> None:
        self._rows += rows

    def advance(self, rows: int) -> None: ...

    def say(self, line: str) -> None:
        self._lines.append(line)


def score_on_cluster(run: Run, settings: Settings, progress: Progress, shards: Iterable[Shard]) -> Spans:
    """Runs SCORE on the workers of the cluster at `settings.ray`. This process writes the log and serves the metrics.

    Args:
        run: the run folder. It and the inputs have the same paths on every node.
        settings: the device of every worker, and the limits of one worker.
        progress: receives the rows of all workers, shard by shard.
        shards: the shards to score.

    Returns:
        The counts and times of the stages, summed over all workers.

    Raises:
        DanqingError: a worker raised it, or shards were given up; names them.
    """
    total, tally = Spans(), Tally()

    def finished(shard: Shard, scored: Scored) -> int:
        total.add(scored.spans)
        note_refused(run, scored.refused)
        for line in scored.lines:
            progress.say(line)
        progress.expect(scored.rows, shard.bytes)
        progress.advance(scored.rows)
        return scored.rows

    def given_up(lost: list[Shard]) -> str:
        names = ", ".join(f"{shard.name} ({shard.path})" for shard in lost)
        return (
            f"shards of {run.folder}, which have no scores: {names}; all others have them. Find the cause (memory, a "
            "picture), leave the shards out, or run the command again"
        )

    with connected(settings.ray) as ray:
        resources = resources_of(settings.device, settings.threads, settings.workers_per_gpu, ray.nodes())
        device, threads = kind_of(settings.device), max(int(resources["CPU"]), 1)  # a worker sees its GPU as cuda:0
        own = replace(settings, ray="", metrics_port=None, device=device, threads=threads)
        spec = WorkerSpec(ShardScorer, (run.folder.resolve(), own), resources)
        with serve_metrics(total, settings.metrics_port, settings.metrics_address, tally=tally):
            run_on_cluster(ray, Job(settings.ray, spec, shards, finished, given_up), progress, tally)
    return total
