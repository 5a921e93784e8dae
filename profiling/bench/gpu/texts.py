"""Measures models with texts: pseudo-perplexity of captions, and both towers as evaluation runs them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.text_column import TextColumn
from danqing.engine.evaluate.evaluation import evaluate
from danqing.engine.evaluate.suites import open_suite
from danqing.engine.evaluate.towers import EngineTowers
from danqing.engine.run.settings import Settings
from danqing.engine.stages.base import Context
from danqing.engine.stages.perplexity import Perplexity
from danqing.profiling.bench.gpu.material import (
    DISTINCT_JPEGS,
    IMAGE,
    LANGUAGE_MODEL,
    TEXT,
    Figure,
    Job,
    captions,
    jpegs,
    rate,
    wait_for,
)
from danqing.profiling.bench.gpu.tower import compiled_engines
from danqing.trt_models.engines import Engine
from danqing.trt_models.model_set import ModelSet

CAPTIONS = {"cpu": 16, "cuda": 1000}
COMPARED = 8
"""Captions or pictures whose results are compared with the CPU's."""


def measure_perplexity(job: Job) -> Iterator[Figure]:
    """Yields rates of `text_perplexity` by the model itself and by each engine, and differences to the CPU."""
    card, role = wait_for(job, LANGUAGE_MODEL), Perplexity.role
    with open_device(job.device) as device, open_device() as host:
        lines = captions(job.captions, CAPTIONS[device.kind])

        def stage(where: Device, engine: Engine | None) -> Perplexity:
            models = ModelSet({role: job.card_name(LANGUAGE_MODEL)}, {role: engine})
            return Perplexity(Context(where, models, frozenset({"text_perplexity"})))

        expected = stage(host, None).run(_batch(lines[:COMPARED]))["perplexity"]
        samples = [{name: np.ones((8, 16), np.int32) for name in ("tokens", "targets")}]
        for name, engine in compiled_engines(card, device, samples):
            if isinstance(engine, str):
                yield Figure(name, engine)
                continue
            try:
                measured = stage(device, engine)
                found = measured.run(_batch(lines[:COMPARED]))["perplexity"]
                speed = rate(lambda: measured.run(_batch(lines)), len(lines), device, repeats=1)  # noqa: B023
            except Exception as problem:  # the other runtimes are measured all the same
                yield Figure(name, f"{type(problem).__name__}: {problem}")
                continue
            yield Figure(f"text_perplexity, {name}", speed, "captions/s")
            difference = np.abs(np.log(found) - np.log(expected)).max()
            yield Figure(f"{name}, largest difference of a log-perplexity to the CPU's", float(difference))


def measure_evaluation(job: Job) -> Iterator[Figure]:
    """Yields rates of both towers as `danqing evaluate` runs them, in float32, and differences to the CPU."""
    names = {wait_for(job, model).task: job.card_name(model) for model in (IMAGE, TEXT)}
    files, lines = jpegs(min(DISTINCT_JPEGS, job.pairs)), captions(job.captions, min(DISTINCT_JPEGS, job.pairs))
    with open_device(job.device) as device, open_device() as host:
        ours, theirs = (
            EngineTowers("random weights", ModelSet(names, dict.fromkeys(names)), where, Settings(device=where.name))
            for where in (device, host)
        )
        for kind, items in (("images", files), ("texts", lines)):
            embed, on_host = getattr(ours, kind), getattr(theirs, kind)
            yield Figure(f"{kind} embedded", rate(lambda: embed(items), len(items), device, repeats=1), "1/s")  # noqa: B023
            cosine = (embed(items[:COMPARED]) * on_host(items[:COMPARED])).sum(1).min()
            yield Figure(f"{kind}, smallest cosine to the CPU's", float(cosine))
        started = time.perf_counter()
        evaluate(ours, open_suite("demo"))
        yield Figure("evaluation of the suite demo", time.perf_counter() - started, "s")


def _batch(lines: list[str]) -> Batch:
    rows: dict[str, Any] = {"row": np.arange(len(lines)), "error": [None] * len(lines)}
    return Batch(rows | {"text_clean": TextColumn.of(lines)})
