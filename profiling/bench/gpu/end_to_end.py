"""Runs shards to scores with the tower, all stages at the same time: pairs a second, limits of the stages, copies."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import yaml

from engine.curate import Settings
from engine.device import open_device
from engine.errors import DanqingError
from engine.profiled import profile
from engine.recipe import Recipe, load_recipe
from engine.sources import Sample
from profiling.bench.crawl import write_shards
from profiling.bench.gpu.figures import Figure
from profiling.bench.gpu.kernels import WITHIN
from profiling.bench.gpu.material import Job, captions, jpegs, wait_for_tower
from profiling.bench.gpu.networks import BATCH, engine_for
from profiling.bench.gpu.pictures import DISTINCT
from trt_models.engines import Engine
from trt_models.store import ModelSet

SHARD_PAIRS = 1000
ORDER = ("tensorrt", "onnxruntime", "torch")
"""Runtimes in order of preference; the first that compiles scores the run."""


def measure(job: Job) -> Iterator[Figure]:
    files = jpegs(min(DISTINCT, job.pairs))
    lines = captions(job.captions, job.pairs)
    pairs = [Sample("", image, "jpg", line) for image, line in zip(islice(cycle(files), job.pairs), lines, strict=True)]
    shards = write_shards(pairs, job.scratch / "crawl", max(job.pairs // SHARD_PAIRS, 1))
    wait_for_tower(job)
    engine = _engine(job)
    settings = Settings(score_everything=True, device=job.device)
    recipe, models = _recipe(job), {"image_embedding": engine}
    found = profile(map(str, shards), job.scratch / "profile", recipe, settings, ModelSet(recipe.models, models))
    up, down = found.copied
    runtime = f"{engine.runtime} {engine.precision}" if engine else "onnxruntime fp32"
    name = f"{job.pairs:,} pairs of 512 × 512, {job.tower} in {runtime}"
    yield Figure(name, found.pairs / found.seconds, "pairs/s", "≥ 1,125")
    yield Figure("pipeline efficiency: end to end ÷ slowest stage alone", found.efficiency or 0.0, "", "≥ 0.95")
    yield Figure("bytes up", up, "B/pair")
    yield Figure("bytes down", down, "B/pair", "≤ 4,096")
    yield Figure("cores busy", found.cores_busy)
    for stage in found.stages:
        if stage.limit:
            yield Figure(f"{stage.stage}, its codec or network alone", stage.limit, "pairs/s")
        yield Figure(f"{stage.stage}, stage alone", stage.rate, "pairs/s")
    yield Figure("verdict", found.verdict)


def _engine(job: Job) -> Engine | None:
    """An engine of the tower in half precision; None on a CPU, where the model itself runs."""
    with open_device(job.device) as device:
        if device.kind == "cpu":
            return None
        for runtime in ORDER:
            try:
                return engine_for(job.card, device, runtime, BATCH[device.kind])
            except DanqingError:
                continue
    return None


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
