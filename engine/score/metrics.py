"""Metrics of a scoring process for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.spans import Spans
from danqing.engine.run.work import Tally
from danqing.engine.score.announce import announce_worker
from danqing.engine.score.gpu_metrics import gpu_gauges
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.package_files import cache_folder


class RefusedEngines(Collector):
    """Whether the engine in use was refused: a gauge per model role, read at each scrape."""

    def __init__(self, models: ModelSet) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        refused = GaugeMetricFamily(
            "danqing_engine_refused",
            "1 if the engine in use cannot be opened, so an older engine or the model itself runs instead.",
            labels=["role"],
        )
        for role in list(self.models.running):
            refused.add_metric([role], role in self.models.refused)
        yield refused


class StageMetrics(Collector):
    """Counts and times of the stages, read from the spans at each scrape."""

    def __init__(self, spans: Spans) -> None:
        self.spans = spans

    def collect(self) -> Iterator[Metric]:
        pairs = CounterMetricFamily("danqing_pairs", "Pairs that a stage has processed.", labels=["stage"])
        passed = CounterMetricFamily("danqing_passed", "Pairs kept by the gate after the stage.", labels=["stage"])
        errors = CounterMetricFamily("danqing_errors", "Pairs with an error.", labels=["stage"])
        dropped = CounterMetricFamily("danqing_dropped", "Pairs dropped by a gate.", labels=["criterion"])
        seconds = CounterMetricFamily(
            "danqing_stage_seconds",
            "Seconds spent processing (work), waiting for input (starved) or for space in the queue (blocked).",
            labels=["stage", "state"],
        )
        copied = CounterMetricFamily("danqing_copied_bytes", "Between host and device.", labels=["stage", "direction"])
        waiting = GaugeMetricFamily("danqing_queue_batches", "Batches in a stage's output queue.", labels=["stage"])
        for stage, span in list(self.spans.items()):
            pairs.add_metric([stage], span.rows)
            passed.add_metric([stage], span.passed)
            errors.add_metric([stage], span.failed)
            for criterion, rows in list(span.dropped.items()):
                dropped.add_metric([criterion], rows)
            for state, value in (
                ("work", span.seconds),
                ("starved", span.starved_seconds),
                ("blocked", span.blocked_seconds),
            ):
                seconds.add_metric([stage, state], value)
            for direction, size in (("up", span.up), ("down", span.down)):
                copied.add_metric([stage, direction], size)
            if span.waiting:
                waiting.add_metric([stage], span.waiting())
        yield from (pairs, passed, errors, dropped, seconds, copied, waiting)


class WorkerMetrics(Collector):
    """Counts of a cluster's workers, read from the tally at each scrape."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    def collect(self) -> Iterator[Metric]:
        shards = CounterMetricFamily("danqing_worker_shards", "Shards that a worker has finished.", labels=["worker"])
        pairs = CounterMetricFamily("danqing_worker_pairs", "Pairs that a worker has finished.", labels=["worker"])
        rate = GaugeMetricFamily("danqing_worker_pairs_per_second", "Since the worker's start.", labels=["worker"])
        for worker, totals in list(self.tally.workers.items()):
            shards.add_metric([worker], totals.shards)
            pairs.add_metric([worker], totals.pairs)
            rate.add_metric([worker], totals.rate)
        yield from (shards, pairs, rate)
        yield CounterMetricFamily("danqing_workers_lost", "Workers that died.", self.tally.lost)


@contextmanager
def serve_metrics(
    spans: Spans,
    port: int | None,
    address: str,
    device: Device | None = None,
    models: ModelSet | None = None,
    tally: Tally | None = None,
    collectors: Iterable[Collector] = (),
) -> Iterator[None]:
    """Serves metrics at http://ADDRESS:PORT/metrics during a `with` block, and announces them to Prometheus.

    Args:
        spans: the stages' times and counts.
        port: the TCP port, 0 for any free one; None serves nothing.
        address: the address to listen at.
        device: the device that scores. The utilisation, memory and power of a GPU are also served.
        models: the models that score, for the gauge of refused engines.
        tally: what the workers of a cluster have done.
        collectors: further metrics.

    Raises:
        DanqingError: the port cannot be opened, or the file for Prometheus cannot be written.
    """
    served: list[Collector] = [StageMetrics(spans), *collectors]
    if models:
        served.append(RefusedEngines(models))
    if tally:
        served.append(WorkerMetrics(tally))
    with serve_collectors(served, port, address, device):
        yield


@contextmanager
def serve_collectors(
    collectors: Iterable[Collector], port: int | None, address: str, device: Device | None = None
) -> Iterator[None]:
    """Serves the metrics of collectors; for the other arguments see `serve_metrics`."""
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    for collector in [*collectors, *(gpu_gauges(device) if device else [])]:
        registry.register(collector)
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, address, registry)
    except (OSError, OverflowError) as problem:
        raise DanqingError(f"--metrics-port {port}: cannot serve at {address}: {problem}") from None
    try:
        with announce_worker(cache_folder() / "metrics", address, server.server_port, device.name if device else "cpu"):
            yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
