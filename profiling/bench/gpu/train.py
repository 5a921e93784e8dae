"""Measures training: models of published size with random weights, on tensors that are there and from shards."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from itertools import cycle, islice, repeat
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from danqing.engine.core.device import resolve_device
from danqing.engine.sources import Sample
from danqing.engine.train.loader import Loader, TrainBatch
from danqing.engine.train.loop import adamw, can_compile, take_step
from danqing.engine.train.meter import peak_flops
from danqing.engine.train.model import GEMMA, SiglipTowers, training_flops
from danqing.engine.train.order import Order
from danqing.engine.train.random_model import write_tokenizer
from danqing.engine.train.ranks import Ranks
from danqing.engine.train.recipe import load_train_recipe
from danqing.engine.train.shards import TrainShard
from danqing.profiling.bench import published
from danqing.profiling.bench.crawl import write_shards
from danqing.profiling.bench.gpu.material import DISTINCT_JPEGS, Figure, Job, captions, jpegs
from danqing.profiling.bench.harness import SEED
from danqing.trt_models.card import ImageInput
from danqing.trt_models.run.tokenizer import SentencePiece

BATCHES = {"siglip2-b-16-256": 768, "siglip2-l-16-256": 256, "siglip2-b-32-256": 768}
"""Model → pairs of a step on a GPU. 768 pairs of L/16 need more memory than 80 GB, if 18 bytes are kept for each
number of a block's output."""
STEPS, WARM_UP_STEPS, BATCH = {"cpu": 3, "cuda": 30}, {"cpu": 1, "cuda": 10}, {"cpu": 4, "cuda": 768}
SHARD_PAIRS = 1000
OPEN_CLIP = """
from danqing.profiling.bench.published import mend_torchvision
mend_torchvision()
import sys
from open_clip_train.main import main
main(sys.argv[1:])
"""
OPEN_CLIP_RATE = re.compile(r", ([\d.]+)/s, ")
GOAL = "≥ 0.95 for B/16 and L/16; B/32 is bound by decoding"


def measure(job: Job) -> Iterator[Figure]:
    """Yields rate, MFU and memory of each model's training, and open_clip's rate."""
    published.mend_torchvision()
    name = resolve_device(job.device)
    device = torch.device("cuda:0" if name == "cuda" else name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    batch = BATCH[device.type]
    shards = _shards(job, max(job.pairs, batch))
    tokenizer = _tokenizer(job)
    for name, pairs in (BATCHES if device.type == "cuda" else {"small": batch}).items():
        try:
            yield from _measure_model(name, pairs, job, device, shards, tokenizer)
        except RuntimeError as problem:  # out of memory, or not compiled; the other models are measured all the same
            yield Figure(f"{name}, {pairs} pairs a step", f"{type(problem).__name__}: {problem}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    yield _open_clip(job, shards, batch, device)


def _measure_model(
    name: str, pairs: int, job: Job, device: torch.device, shards: list[TrainShard], tokenizer: SentencePiece
) -> Iterator[Figure]:
    torch.manual_seed(SEED)
    recipe = replace(load_train_recipe(), batch=pairs)
    with device:
        small = published.vision(32, 2, 2, 32, 8)
        model: Any = published.TOWERS[name]() if name in BATCHES else published.build_siglip(small)
    size = model.config.vision_config.image_size
    net, optimizer = SiglipTowers(model), adamw(model, recipe, device)
    if device.type == "cuda":
        yield Figure("torch.compile", "in use" if can_compile() else "no C compiler or Python headers")
        if can_compile():
            net.compile()
        torch.cuda.reset_peak_memory_stats()
    flops = training_flops(model.config)
    yield Figure(f"{name}, {pairs} pairs a step, arithmetic of a pair", flops / 1e9, "GFLOP")
    order = Order(tuple(shard.rows for shard in shards), recipe.batch)
    pixels = torch.randint(0, 256, (recipe.batch, size, size, 3), dtype=torch.uint8, device=device)
    tokens = torch.randint(4, 1000, (recipe.batch, tokenizer.card.max_length), device=device)
    steps = STEPS[device.type]

    def loader(decoder: str) -> AbstractContextManager[Iterator[TrainBatch]]:
        image_input, ranks = ImageInput(size, size, "stretch", "linear"), Ranks(0, 1, device, decoder)
        made = Loader(shards, job.scratch / "index", order, image_input, tokenizer, ranks)
        return made.batches(range(steps))

    sources: dict[str, AbstractContextManager[Iterator[TrainBatch]]] = {
        "tensors": nullcontext(repeat(TrainBatch(pixels, tokens, [], 0)))
    }
    if device.type == "cuda":
        sources["shards, decoded on the GPU"] = loader(str(device))
    sources["shards, decoded on the CPU"] = loader("cpu")
    rates: dict[str, float] = {}
    for source, opened in sources.items():
        with opened as batches:
            started = time.perf_counter()
            for step, batch in enumerate(islice(batches, steps)):
                take_step(net, model, optimizer, batch, recipe, 1e-5)
                if step + 1 == WARM_UP_STEPS[device.type]:
                    _wait(device)
                    if not rates:
                        seconds = time.perf_counter() - started
                        yield Figure(f"{name}, first {step + 1} steps, with compilation", seconds, "s")
                    started = time.perf_counter()
            _wait(device)
        measured = steps - WARM_UP_STEPS[device.type]
        rates[source] = measured * recipe.batch / (time.perf_counter() - started)
        yield Figure(f"{name}, from {source}", rates[source], "pairs/s")
        if source == "tensors" and (peak := peak_flops(device)):
            yield Figure(f"{name}, MFU", rates[source] * flops / peak)
        elif source != "tensors":
            yield Figure(f"{name}, {source} ÷ tensors", rates[source] / rates["tensors"], "", GOAL)
    if device.type == "cuda":
        yield Figure(f"{name}, peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB")


def _open_clip(job: Job, shards: list[TrainShard], batch: int, device: torch.device) -> Figure:
    """Measures open_clip on the same tars: B/16 at 256 pixels with CLIP's text tower, whose tokenizer it ships."""
    name = "open_clip, ViT-B-16 at 256 with CLIP's text tower, from shards, 16 workers"
    if not (find_spec("open_clip_train") and find_spec("webdataset")):
        return Figure(name, "not installed: pip install open_clip_torch 'webdataset<=0.2.86'")
    tars = "::".join(str(shard.table.with_suffix(".tar")) for shard in shards)
    pairs = STEPS[device.type] * batch
    options = {"train-data": tars, "dataset-type": "webdataset", "train-num-samples": pairs, "batch-size": batch,
               "epochs": 1, "workers": min(16, len(shards)), "model": "ViT-B-16", "force-image-size": 256,
               "precision": "fp32" if device.type == "cpu" else "amp_bf16", "device": device.type,
               "log-every-n-steps": 1, "logs": job.scratch / "open_clip", "save-frequency": 0}  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, "-c", OPEN_CLIP, *words, "--siglip", "--dataset-resampled"], capture_output=True, text=True
    )
    rates = [float(rate) for rate in OPEN_CLIP_RATE.findall(done.stderr + done.stdout)][WARM_UP_STEPS[device.type] :]
    return Figure(name, median(rates) if rates else f"ended with {done.returncode}: {done.stderr[-300:]}", "pairs/s")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _shards(job: Job, pairs: int) -> list[TrainShard]:
    """Writes tars of JPEG pictures of 512 × 512 with Chinese captions, and their tables."""
    lines, files = captions(job.captions, pairs), cycle(jpegs(min(DISTINCT_JPEGS, pairs)))
    samples = [Sample("", image, "jpg", line) for image, line in zip(files, lines, strict=False)]
    tars = write_shards(samples, job.scratch / "pairs", max(pairs // SHARD_PAIRS, 1))
    size, shards = -(-pairs // len(tars)), []
    for number, tar in enumerate(tars):
        part = range(number * size, min((number + 1) * size, pairs))
        table = pa.table({"uid": [f"{row:032x}" for row in part], "caption": [lines[row] for row in part]})
        pq.write_table(table, tar.with_suffix(".parquet"))
        shards.append(TrainShard(Path(tar.with_suffix(".parquet")), len(part), "benchmark"))
    return shards


def _tokenizer(job: Job) -> SentencePiece:
    """A tokenizer of SigLIP 2's kind, whose pieces are the characters of the captions."""
    path = job.scratch / GEMMA.file
    write_tokenizer(path, captions(job.captions, 500))
    return SentencePiece(replace(GEMMA, max_length=64), path)
