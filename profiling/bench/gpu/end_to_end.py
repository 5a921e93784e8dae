"""Runs shards to scores with the tower, all stages at the same time: pairs a second, limits of the stages, copies."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path

import yaml

from danqing.engine.core.device import open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.settings import Settings
from danqing.engine.sources import Sample
from danqing.profiling.bench.crawl import write_shards
from danqing.profiling.bench.gpu.figures import Figure
from danqing.profiling.bench.gpu.kernels import WITHIN
from danqing.profiling.bench.gpu.material import Job, captions, jpegs, wait_for_tower
from danqing.profiling.bench.gpu.networks import BATCH, engine_for
from danqing.profiling.bench.gpu.pictures import DISTINCT
from danqing.profiling.profile import Profile
from danqing.profiling.profiler import profile
from danqing.trt_models.engines import Engine
from danqing.trt_models.model_set import ModelSet

SHARD_PAIRS = 1000
RUNTIMES = ("tensorrt", "onnxruntime", "torch")
SWITCH_SECONDS = 0.0005
"""Interval after which a thread gives the interpreter's lock to a waiting one; Python's default is 0.005. A thread that
feeds the GPU takes the lock several times a batch."""


def measure(job: Job) -> Iterator[Figure]:
    files = jpegs(min(DISTINCT, job.pairs))
    lines = captions(job.captions, job.pairs)
    pairs = [Sample("", image, "jpg", line) for image, line in zip(islice(cycle(files), job.pairs), lines, strict=True)]
    shards = write_shards(pairs, job.scratch / "crawl", max(job.pairs // SHARD_PAIRS, 1))
    recipe, settings = _recipe(job), Settings(score_everything=True, device=job.device)

    def score(engine: Engine | None) -> Profile:
        models = ModelSet(recipe.models, {"image_embedding": engine})
        return profile(map(str, shards), job.scratch / "profile", recipe, settings, models)

    wait_for_tower(job)
    engines = _engines(job)
    yield Figure("pairs of 512 × 512 in a run", job.pairs)
    for engine in engines:
        found = score(engine)
        name = f"{job.tower}, {engine.runtime} {engine.precision}" if engine else f"{job.tower}, onnxruntime fp32"
        yield Figure(name, found.pairs / found.seconds, "pairs/s", "≥ 1,125")
        yield Figure(f"{name}: end to end ÷ slowest stage alone", found.efficiency or 0.0, "", "≥ 0.95")
    for way, copied, bar in zip(("up", "down"), found.copied, ("", "≤ 4,096"), strict=True):
        yield Figure(f"bytes {way}", copied, "B/pair", bar)
    yield Figure("cores busy", found.cores_busy)
    for stage in found.stages:
        if stage.limit:
            yield Figure(f"{stage.stage}, its codec or network alone", stage.limit, "pairs/s")
        yield Figure(f"{stage.stage}, stage alone", stage.rate, "pairs/s")
    yield Figure("verdict", found.verdict)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        found = score(engines[-1])
    finally:
        sys.setswitchinterval(usual)
    yield Figure(f"{name}, threads switch every 0.5 ms", found.pairs / found.seconds, "pairs/s")


def _engines(job: Job) -> Sequence[Engine | None]:
    """The tower's engines in 16 bits, one per installed runtime; on a CPU the model itself (None)."""
    if job.device == "cpu":
        return [None]
    engines = []
    with open_device(job.device) as device:
        for runtime in RUNTIMES:
            with suppress(DanqingError):
                engines.append(engine_for(job.card, device, runtime, BATCH[device.kind]))
    return engines or [None]


def _recipe(job: Job) -> Recipe:
    """A recipe that needs text measures, pixel statistics and the tower's features."""
    models = load_recipe("embedded").models
    criteria = {
        "unsafe_text": {"min": 0}, "words": {"min": 0}, "unsafe_caption": {"min": 0}, "decodable": {"min": 1},
        "laplacian_variance": {"min": 0}, "redundancy": {"within": WITHIN},
    }  # fmt: skip
    lists = {role: models[role] for role in ("text_safety", "caption_safety")}
    content = {"recipe": "gpu", "models": {**lists, "image_embedding": job.card_name}, "criteria": criteria}
    path = Path(job.scratch) / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return load_recipe(path)
