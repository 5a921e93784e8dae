"""Measures an image tower: in every installed runtime, and in runs from shards to scores, all stages at once."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import cycle, islice
from math import prod
from pathlib import Path

import numpy as np
import onnx
import yaml

from danqing.engine.core.device import Device, open_device, resolve_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import Silent
from danqing.engine.phases import score_inputs
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.settings import Settings
from danqing.engine.sources import Sample
from danqing.profiling.bench.crawl import write_shards
from danqing.profiling.bench.duplicates import WITHIN
from danqing.profiling.bench.gpu.material import DISTINCT_JPEGS, IMAGE, Figure, Job, captions, jpegs, rate, wait_for
from danqing.profiling.bench.harness import SEED
from danqing.profiling.parity import similarity, verify
from danqing.profiling.profile import Profile
from danqing.profiling.profiler import profile
from danqing.trt_models.card import Card
from danqing.trt_models.compile.compilers import compile_engine
from danqing.trt_models.engines import MAX_FLIPS, MIN_COSINE, Engine, Engines, open_model
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.runtimes import RUNTIMES, Samples
from danqing.trt_models.store import onnx_path

BATCH = {"cpu": 8, "cuda": 64}
ON_CPU = {"onnxruntime": "int8", "torch": "bf16"}
"""Runtime → precision of its engine for a CPU; on a GPU it is fp16."""
BAR = "≥ 1,125: ten times NeMo Curator's nightly floor for a GPU"
SHARD_PAIRS, VERIFIED_PAIRS, SCORED_RUNTIMES = 1000, 64, ("tensorrt", "onnxruntime", "torch")
SWITCH_SECONDS = 0.0005
"""Python's switch interval in one of the runs; its default is 0.005. A thread that feeds the GPU waits for the lock."""


def measure_networks(job: Job) -> Iterator[Figure]:
    """Yields rate, share of the peak and cosine of the tower in every installed runtime."""
    card = wait_for(job, IMAGE)
    with open_device(job.device) as device:
        rows = BATCH[device.kind]
        pixels = np.random.default_rng(SEED).integers(0, 256, (rows, 224, 224, 3), np.uint8)
        given, work = {"pixels": device.up(pixels)}, flops(onnx_path(card))
        peak = _peak(device)
        yield Figure("matrix product of 16-bit numbers (32-bit on a CPU)", peak / 1e12, "TFLOP/s")
        yield Figure(f"{job.tower}, arithmetic of a picture", work / 1e9, "GFLOP")
        reference = None
        for name, engine in compiled_engines(card, device, _samples()):
            if isinstance(engine, str):
                yield Figure(name, engine)
                continue
            try:
                started = time.perf_counter()
                session = open_model(card, device, engine).session
                found = device.down(session.run(**given)["embedding"])
                opened = time.perf_counter() - started
                speed = rate(lambda: session.run(**given), rows, device)  # noqa: B023
            except Exception as problem:  # the other runtimes are measured all the same
                yield Figure(name, f"{type(problem).__name__}: {problem}")
                continue
            reference = found if reference is None else reference
            yield Figure(f"{name}, batch {rows}", speed, "pictures/s", BAR)
            yield Figure(f"{name}, share of the peak", speed * work / peak)
            cosine = float(similarity(reference, found).min())
            yield Figure(f"{name}, smallest cosine to fp32", cosine, "", f"≥ {MIN_COSINE}")
            yield Figure(f"{name}, seconds to open and run once", opened, "s")


def compiled_engines(
    card: Card, device: Device, samples: Samples, runtimes: Iterable[str] = RUNTIMES
) -> Iterator[tuple[str, Engine | str | None]]:
    """Yields the model itself (None), then each runtime's engine, in 16 bits on a GPU, or why there is none.

    `samples`: inputs of the model, from which engines of eight bits take ranges.
    """
    yield "onnxruntime fp32", None
    for runtime in runtimes:
        precision = "fp16" if device.kind == "cuda" else ON_CPU.get(runtime, "fp32")
        try:
            yield f"{runtime} {precision}", _engine_for(card, device, runtime, precision, samples)
        except DanqingError as problem:
            yield f"{runtime} {precision}", f"none: {problem}"
        except Exception as problem:  # a library's own; the other runtimes are measured all the same
            yield f"{runtime} {precision}", f"none: {type(problem).__name__}: {problem}"


def _samples() -> Samples:
    """Inputs of the image tower: noise."""
    return [{"pixels": np.random.default_rng(SEED).integers(0, 256, (8, 224, 224, 3), np.uint8)}]


def _engine_for(card: Card, device: Device, runtime: str, precision: str, samples: Samples) -> Engine:
    """Returns the card's engine for the device; compiles it if there is none."""
    rows = BATCH[device.kind]
    for engine in Engines(card).all():
        found = engine.runtime, engine.precision, engine.target, engine.batch[2]
        if found == (runtime, precision, device.target, rows):
            return engine
    return compile_engine(card, precision, device.target, (1, rows, rows), runtime=runtime, samples=samples)


def _peak(device: Device) -> float:
    """Multiplications and additions a second in a large matrix product of random numbers."""
    xp, side, kind = (device.xp, 8192, np.float16) if device.kind == "cuda" else (device.xp, 1024, np.float32)
    left, right = (xp.random.standard_normal((side, side)).astype(kind) for _ in range(2))
    return rate(lambda: xp.matmul(left, right), 2 * side**3, device)


def flops(path: Path) -> float:
    """Counts multiplications and additions for one row of an ONNX graph: those of MatMul, Gemm and Conv."""
    model = onnx.load(str(path), load_external_data=False)
    for given in model.graph.input:
        given.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    infos = (*inferred.value_info, *inferred.input, *inferred.output)
    shapes = {info.name: [side.dim_value for side in info.type.tensor_type.shape.dim] for info in infos}
    shapes |= {weight.name: list(weight.dims) for weight in inferred.initializer}
    total = 0
    for node in inferred.node:
        if node.op_type in ("MatMul", "Gemm"):
            total += 2 * prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        elif node.op_type == "Conv":
            total += 2 * prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
    return float(total)


def measure_end_to_end(job: Job) -> Iterator[Figure]:
    """Yields rate, efficiency and copied bytes of runs from shards to scores, one for each engine."""
    shards = _shards(job)
    recipe, settings = _recipe(job), Settings(score_everything=True, device=job.device)

    def score(engine: Engine | None) -> Profile:
        models = ModelSet(recipe.models, {"image_embedding": engine})
        return profile(map(str, shards), job.scratch / "profile", recipe, settings, models)

    card = wait_for(job, IMAGE)
    engines: list[Engine | None] = [None]
    if job.device != "cpu":
        with open_device(job.device) as device:
            kept = (engine for _, engine in compiled_engines(card, device, _samples(), SCORED_RUNTIMES))
            engines = [engine for engine in kept if isinstance(engine, Engine)] or engines
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


def measure_workers(job: Job) -> Iterator[Figure]:
    """Yields the rates of one and of two processes on one device, with an engine that is verified and in use."""
    shards, recipe, card = _shards(job), _recipe(job), wait_for(job, IMAGE)
    if job.device != "cpu":
        with open_device(job.device) as device:
            made = (engine for _, engine in compiled_engines(card, device, _samples(), reversed(SCORED_RUNTIMES)))
            engine = next((engine for engine in made if isinstance(engine, Engine)), None)
        if engine:
            wanted = {"cosine_mean": MIN_COSINE, "flips": MAX_FLIPS}
            settings = Settings(device=job.device)
            engine = verify(card, engine, map(str, shards[:1]), recipe, settings, VERIFIED_PAIRS, wanted)
            yield Figure(f"{engine.name}, mean cosine", engine.parity.cosine_mean if engine.parity else 0.0)
            Engines(card).activate(engine)
    steady = []
    for processes in (1, 2):
        finished, started = Finished(), time.perf_counter()
        settings = Settings(score_everything=True, devices=(resolve_device(job.device),) * processes)
        folder = job.scratch / f"workers-{processes}"
        score_inputs(map(str, shards), folder, recipe, settings, progress=lambda *_: nullcontext(finished))  # noqa: B023
        whole, number = time.perf_counter() - started, f"{processes} process{'es' * (processes - 1)}"
        yield Figure(f"{number}, whole run with its start", job.pairs / whole, "pairs/s")
        steady.append(finished.steady_rate())
        yield Figure(f"{number}, from the 20th to the 90th percentile of the pairs", steady[-1], "pairs/s")
    yield Figure("2 processes ÷ 1, these percentiles", steady[1] / steady[0])


class Finished(Silent):
    """Notes when each pair was finished."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def advance(self, rows: int) -> None:
        self.seconds += [time.perf_counter()] * rows

    def steady_rate(self) -> float:
        """Pairs a second from the 20th to the 90th percentile."""
        first, last = int(0.2 * len(self.seconds)), int(0.9 * len(self.seconds))
        return (last - first) / max(self.seconds[last] - self.seconds[first], 1e-9)


def _shards(job: Job) -> list[Path]:
    """Tars of `job.pairs` pairs, at least four."""
    folder = job.scratch / "crawl"
    if not folder.exists():
        files, lines = jpegs(min(DISTINCT_JPEGS, job.pairs)), captions(job.captions, job.pairs)
        images = islice(cycle(files), job.pairs)
        pairs = [Sample("", image, "jpg", line) for image, line in zip(images, lines, strict=True)]
        part = folder.with_suffix(".part")  # a step that runs out of time must not leave a part of the tars
        shutil.rmtree(part, ignore_errors=True)
        write_shards(pairs, part, max(job.pairs // SHARD_PAIRS, 4))
        part.rename(folder)
    return sorted(folder.glob("*.tar"))


def _recipe(job: Job) -> Recipe:
    """A recipe that needs text measures, pixel statistics and the tower's features."""
    models = load_recipe("embedded").models
    criteria = {
        "unsafe_text": {"min": 0}, "words": {"min": 0}, "unsafe_caption": {"min": 0}, "decodable": {"min": 1},
        "laplacian_variance": {"min": 0}, "redundancy": {"within": WITHIN},
    }  # fmt: skip
    lists = {role: models[role] for role in ("text_safety", "caption_safety")}
    content = {"recipe": "gpu", "models": {**lists, "image_embedding": job.card_name(IMAGE)}, "criteria": criteria}
    path = Path(job.scratch) / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return load_recipe(path)
