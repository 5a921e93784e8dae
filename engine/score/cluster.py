"""SCORE on a Ray cluster, with a worker on every GPU of all nodes (`engine.run.cluster`)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from danqing.engine.core.device import kind_of
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.logs import log_worker_record, records_to
from danqing.engine.core.progress import Progress
from danqing.engine.core.spans import Span, Spans
from danqing.engine.run.cluster import WorkerSpec, connected, run_on_cluster
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.run.versions import SCORING_VERSIONS, current_versions, version_changes
from danqing.engine.run.work import MAX_DEATHS, Tally, WorkQueue
from danqing.engine.score.metrics import serve_metrics
from danqing.engine.score.workers import note_refused, scoring
from danqing.engine.sources import Shard


class Scored(NamedTuple):
    """The result of a worker for one shard; its files are in the run's folder.

    Attributes:
        rows: number of rows.
        spans: counts and times of the stages.
        records: log records (`records_to`).
        lines: lines for the user.
        refused: engines that could not be opened, by role.
    """

    rows: int
    spans: dict[str, Span]
    records: list[tuple[int, str, Mapping[str, Any]]]
    lines: list[str]
    refused: dict[str, str]


class ShardScorer:
    """A worker (`engine.run.cluster.Worker`) that scores shards of a run, and collects its progress (`Progress`).

    Args:
        folder: the run's folder.
        settings: the device (among those that Ray shows the worker), the threads, and the limits of one worker.
        working_folder: the driver's, to which paths in the settings and the recipe can be relative.
        versions: the driver's versions.
    """

    def __init__(self, folder: Path, settings: Settings, working_folder: Path, versions: Mapping[str, str]) -> None:
        self._folder, self._settings, self._versions = folder, settings, versions
        self._working_folder = working_folder
        self._open = ExitStack()
        self._rows, self._records, self._lines = 0, list[tuple[int, str, Mapping[str, Any]]](), list[str]()

    def open(self) -> str:
        """Opens the device. The models are loaded with the first shard and stay loaded."""
        check_versions(self._versions)
        with suppress(OSError):  # this node does not have the folder
            os.chdir(self._working_folder)
        self._run = Run.open(self._folder)
        self._open.enter_context(records_to(lambda *record: self._records.append(record)))
        self._score = self._open.enter_context(scoring(self._run, self._settings, self))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpu = visible if kind_of(self._settings.device) == "cuda" else None
        return f"{socket.gethostname()}, {f'cuda:{gpu}' if gpu else self._settings.device}"

    def work(self, shard: Shard) -> Scored:
        """Scores a shard."""
        spans = self._score(iter([shard]))
        refused = dict(self._run.manifest.get("refused_engines", {}))
        scored = Scored(self._rows, spans.sums(), self._records, self._lines, refused)
        spans.clear()
        self._rows, self._records, self._lines = 0, [], []
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
    total, queue, tally = Spans(), WorkQueue(shards), Tally()

    def finished(worker: str, shard: Shard, scored: Scored) -> None:
        total.add(scored.spans)
        note_refused(run, scored.refused)
        tally.add(worker, shards=1, pairs=scored.rows)
        for record in scored.records:
            log_worker_record(worker, *record)
        for line in scored.lines:
            progress.say(line)
        progress.expect(scored.rows, shard.bytes)
        progress.advance(scored.rows)

    with connected(settings.ray) as ray:
        resources = resources_of(settings, ray.nodes())
        device, threads = kind_of(settings.device), max(int(resources["CPU"]), 1)  # a worker sees its GPU as cuda:0
        own = replace(settings, ray="", metrics_port=None, device=device, threads=threads)
        arguments = (run.folder.resolve(), own, Path.cwd(), current_versions())
        spec = WorkerSpec(ShardScorer, arguments, resources)
        with serve_metrics(total, settings.metrics_port, settings.metrics_address, tally=tally):
            run_on_cluster(ray, spec, queue, tally, finished, progress, settings.ray)
    tally.write_log()
    if queue.given_up:
        names = ", ".join(f"{shard.name} ({shard.path})" for shard in queue.given_up)
        raise DanqingError(
            f"{run.folder}: {MAX_DEATHS} workers died at each of these shards, which have no scores: {names}; all "
            "others have them. Find the cause (memory, a picture), leave the shards out, or run the command again"
        )
    return total


def resources_of(settings: Settings, nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the resources of a worker: a GPU or a share of one, and cores.

    Args:
        settings: `threads`, if given, is the number of cores. Without it, the workers of a node with GPUs share its
            cores equally, and a worker without a GPU has one.
        nodes: as listed by `ray.nodes`.
    """
    if kind_of(settings.device) == "cpu":
        return {"CPU": settings.threads or 1}
    found = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("GPU")]
    share = min((node.get("CPU", 0) // (node["GPU"] * settings.workers_per_gpu) for node in found), default=1)
    return {"GPU": 1 / settings.workers_per_gpu, "CPU": settings.threads or max(int(share), 1)}


def check_versions(wanted: Mapping[str, str]) -> None:
    """Raises DanqingError if this node has other versions than the driver that can change scores."""
    changed = version_changes(wanted, current_versions())
    decisive = [
        f"{name} {new or 'none'}, not {old}" for name, (old, new) in changed.items() if name in SCORING_VERSIONS
    ]
    if decisive:
        raise DanqingError(f"{socket.gethostname()} has other versions than the driver: {'; '.join(decisive)}")
