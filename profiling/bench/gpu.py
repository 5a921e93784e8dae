"""The engine's figures on a GPU, beside what each is measured against: one table.

    sh profiling/bench/gpu.sh                                     # the tests that need a GPU, then this
    python -m profiling.bench.gpu --device cuda
    python -m profiling.bench.gpu --device cpu --tower chinese-clip-vit-b-16 --pairs 48 --rows 20000    # does it run?

*Scoring*: pictures of 512 × 512 as JPEG, captions, text and picture figures, and an image tower of ViT-L/14's size with
random weights, fp16 where TensorRT is there to compile it; all stages at once, beside the codec and the network alone.
*Captions*: all measures of a column, which lies on the GPU as cuDF's where that is installed. *Near-duplicates*: exact,
over vectors of 768 with planted neighbours; FAISS, where it is installed, finds the 50 nearest of each row, not all
that are near. The bars: ten times the floor that NeMo Curator's nightly benchmark sets a GPU, and its near-duplicate
search on eight H100s, by GPU.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from engine.curate import Settings
from engine.dedup.features import Features
from engine.dedup.sets import chains
from engine.device import Device, open_device
from engine.errors import DanqingError
from engine.frames import measure_captions
from engine.profiled import profile
from engine.recipe import Recipe, load_recipe
from engine.report.profile import print_profile
from engine.sources import Sample
from profiling.bench import in_scratch, machine
from profiling.bench.crawl import chinese_lines, write_shards
from profiling.bench.duplicates import planted
from profiling.bench.export_parity import MODELS, SPREAD
from profiling.bench.published import mend_torchvision, randomised, save
from profiling.profile import Profile
from trt_models.card import load_card
from trt_models.compile import compile_engine
from trt_models.engines import Engine
from trt_models.export.from_checkpoint import export
from trt_models.store import ModelSet

SIDE, SHARD, SEED = 512, 1000, 20260122
WITHIN, DIMENSION, NEAREST, QUERIES = 0.1, 768, 50, 8192
BARS = {"pictures": 1125.0, "efficiency": 0.9, "down": 4096.0, "rows": 90_000.0}
TEXT_STAGES = ("caption", "refine")

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def pictures() -> Iterator[bytes]:
    """The demo's photographs, each time another part of one."""
    photographs = Path(str(resources.files("engine"))) / "demo" / "photos"
    opened = [Image.open(path).convert("RGB") for path in sorted(photographs.glob("*.jpg"))]
    chance = random.Random(SEED)
    while True:
        picture = chance.choice(opened)
        side = chance.randint(min(picture.size) // 2, min(picture.size))
        left, top = chance.randint(0, picture.width - side), chance.randint(0, picture.height - side)
        buffer = io.BytesIO()
        picture.resize((SIDE, SIDE), box=(left, top, left + side, top + side)).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def recipe_for(tower: str, folder: Path) -> Recipe:
    """Text and picture figures, and the tower's features."""
    models = load_recipe("embedded").models
    criteria = {
        "unsafe_text": {"min": 0}, "words": {"min": 0}, "unsafe_caption": {"min": 0}, "decodable": {"min": 1},
        "laplacian_variance": {"min": 0}, "redundancy": {"within": WITHIN},
    }  # fmt: skip
    lists = {role: models[role] for role in ("text_safety", "caption_safety")}
    content = {"recipe": "gpu", "models": {**lists, "image_embedding": f"{tower}-image"}, "criteria": criteria}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return load_recipe(path)


def open_tower(tower: str, device: str, folder: Path) -> Engine | None:
    """Makes the tower of random weights known by its card's name; returns its fp16 engine, None if the ONNX runs."""
    import torch

    mend_torchvision()
    torch.manual_seed(SEED)
    card = load_card(f"{tower}-image")
    export(card, save(randomised(MODELS[tower](), spread=SPREAD), folder / "checkpoint"))
    with open_device(device) as opened:
        if opened.kind == "cpu":
            return None
        try:
            return compile_engine(card, "fp16", opened.target)
        except DanqingError as problem:
            console.print(f"no TensorRT engine, ONNX Runtime runs the model itself: {problem}", style="dim")
            return None


def measure_scoring(options: argparse.Namespace, folder: Path) -> Profile:
    engine = open_tower(options.tower, options.device, folder)
    recipe = recipe_for(options.tower, folder)
    lines = chinese_lines(options.captions, options.pairs)
    pairs = [Sample("", image, "jpg", line) for line, image in zip(lines, pictures(), strict=False)]
    shards = write_shards(pairs, folder / "crawl", max(options.pairs // SHARD, 1))
    settings = Settings(score_everything=True, device=options.device)
    models = ModelSet(recipe.models, {"image_embedding": engine})
    return profile(map(str, shards), folder / "profile", recipe, settings, models)


def rate(work: Callable[[Any], object], some: Any, everything: Any) -> float:
    """Rows a second, after a warming up with some of them."""
    work(some)
    started = time.perf_counter()
    work(everything)
    return len(everything) / (time.perf_counter() - started)


def measure_text(device: Device, options: argparse.Namespace) -> float:
    """Captions a second."""
    lines = chinese_lines(options.captions, options.rows)
    column: Any = pa.array(lines, pa.large_string())
    if device.kind == "cuda":
        with suppress(ImportError):
            import cudf

            column = cudf.Series(column)
    return rate(lambda captions: measure_captions(captions, device), column[:4096], column)


def measure_duplicates(device: Device, rows: int, folder: Path) -> dict[str, float]:
    """Rows a second, by whose search it is."""
    block = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, (rows, DIMENSION))
    planted(rows, rows, None, block)
    found = {"exact": rate(lambda features: chains(Features(device, [features]), WITHIN), block[:9000], block)}
    with suppress(ImportError):
        found[f"FAISS's {NEAREST} nearest"] = rate(partial(nearest_by_faiss, device), block[:9000], block)
    return found


def nearest_by_faiss(device: Device, features: np.ndarray) -> None:
    """On a GPU in half precision, too."""
    import faiss

    vectors = features.astype(np.float32)
    if device.kind == "cuda":
        resources, config = faiss.StandardGpuResources(), faiss.GpuIndexFlatConfig()
        config.useFloat16, config.device = True, device.number
        index = faiss.GpuIndexFlatIP(resources, DIMENSION, config)
    else:
        index = faiss.IndexFlatIP(DIMENSION)
    index.add(vectors)
    for start in range(0, len(vectors), QUERIES):
        index.search(vectors[start : start + QUERIES], NEAREST)


def print_figures(found: Profile, captions: float, rows: dict[str, float], given: argparse.Namespace) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "found", "bar"):
        table.add_column(name, justify="right" if name else "left")
    limits = {figures.stage: figures.limit for figures in found.stages if figures.limit}
    text = sum(figures.work for figures in found.stages if figures.stage in TEXT_STAGES)
    up, down = found.copied
    efficiency = found.efficiency or 0.0
    lines = [
        ("pictures a second, end to end", f"{found.pairs / found.seconds:,.0f}", f"≥ {BARS['pictures']:,.0f}"),
        *((f"pictures a second, {stage} alone", f"{limit:,.0f}", "") for stage, limit in limits.items()),
        ("of the slowest stage alone", f"{efficiency:.3f}", f"≥ {BARS['efficiency']}"),
        ("bytes up a pair", f"{up:,.0f}", ""),
        ("bytes down a pair", f"{down:,.0f}", f"≤ {BARS['down']:,.0f}"),
        ("captions a second, text stages alone", f"{found.pairs / text:,.0f}", ""),
        (f"captions a second, a column of {given.rows:,}", f"{captions:,.0f}", ""),
        *(
            (f"near-duplicates, {name}, rows a second of {given.rows:,}", f"{rate:,.0f}", f"≥ {BARS['rows']:,.0f}")
            for name, rate in rows.items()
        ),
    ]
    for line in lines:
        table.add_row(*line)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tower", choices=[name for name in MODELS if "clip" in name], default="chinese-clip-vit-l-14")
    parser.add_argument("--captions", type=Path, metavar="PARQUET", help="column 'text'; without: the demo's captions")
    parser.add_argument("--pairs", type=int, default=8000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    return in_scratch("gpu", partial(run, options))


def run(options: argparse.Namespace, folder: Path) -> None:
    os.environ["DANQING_CACHE"] = str(folder / "cache")
    with open_device(options.device) as device:
        rows, captions = measure_duplicates(device, options.rows, folder), measure_text(device, options)
    found = measure_scoring(options, folder)
    print_profile(found)
    print_figures(found, captions, rows, options)
    console.print(
        machine(
            (
                "onnxruntime-gpu",
                "onnxruntime",
                "tensorrt",
                "nvidia-nvimgcodec-cu13",
                "cupy-cuda13x",
                "cudf-cu13",
                "faiss-gpu",
            )
        )
    )


if __name__ == "__main__":
    sys.exit(main())
