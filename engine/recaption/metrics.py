"""Metrics of RECAPTION for Prometheus, beside those of the stages."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from danqing.engine.recaption.recaptioning import Asking


class AskingMetrics(Collector):
    """Requests, outcomes and tokens, read at each scrape."""

    def __init__(self, asking: Asking) -> None:
        self._client, self._asking = asking.client, asking

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("danqing_vlm_waiting", "Pictures that are asked about or wait for a request.")
        waiting.add_metric([], self._client.waiting)
        busy = GaugeMetricFamily("danqing_vlm_outstanding", "Requests without an answer.", labels=["endpoint"])
        for endpoint in self._client.endpoints:
            busy.add_metric([endpoint.address], endpoint.outstanding)
        yield from (waiting, busy)
        yield CounterMetricFamily("danqing_vlm_retries", "Requests that were sent again.", self._client.retries)
        outcomes = CounterMetricFamily("danqing_vlm_outcomes", "Recaptions by outcome.", labels=["outcome"])
        tokens = CounterMetricFamily("danqing_vlm_tokens", "Tokens of prompts and of answers.", labels=["kind"])
        for outcome, count in list(self._asking.outcomes.items()):
            outcomes.add_metric([outcome], count)
        for kind, count in list(self._asking.tokens.items()):
            tokens.add_metric([kind], count)
        yield from (outcomes, tokens)
