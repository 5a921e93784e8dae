"""The picture stages beside OpenCV, Pillow and simplejpeg, each written well for the same results.

    pip install simplejpeg
    python -m danqing.profiling.bench.images --data 'photos/*.tar'

Three jobs over the same JPEG files: decoding alone; the three statistics alone (of decoded pictures); decoding,
statistics and resizing to the default models' two sizes. One thread a core on every side, rounds interleaved, medians.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from statistics import median
from typing import Any

import cv2
import numpy as np
import simplejpeg  # type: ignore[import-not-found, import-untyped, unused-ignore]
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.sources import Layout, find_shards, open_shard
from danqing.engine.stages.base import Context
from danqing.engine.stages.decode import Decode
from danqing.engine.stages.header import Header
from danqing.engine.stages.pixels import PixelStatistics
from danqing.engine.stages.resize import open_resizer
from danqing.profiling.bench.plain import resized
from danqing.trt_models.card import ImageInput, load_card
from danqing.trt_models.model_set import ModelSet

console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)

Job = Callable[[], Any]


def photographs(data: Sequence[str], wanted: int) -> list[bytes]:
    """The first baseline JPEG files of the shards."""
    samples = (sample for shard in find_shards(data) for sample in open_shard(shard, Layout()))
    photos = list(islice((s.image for s in samples if s.image[:3] == b"\xff\xd8\xff"), wanted))
    if not photos:
        raise DanqingError("no JPEG files in these shards")
    return photos


def ours(files: list[bytes], pictures: list[np.ndarray], inputs: list[ImageInput], device: Device) -> dict[str, Job]:
    context = Context(device, ModelSet({}), frozenset())
    header, decode, statistics = Header(context), Decode(context), PixelStatistics(context)
    resize = open_resizer(inputs, device)

    def decoded() -> Batch:
        batch = Batch({"row": np.arange(len(files)), "image": files, "error": [None] * len(files)})
        header(batch)
        decode(batch)
        return batch

    def everything() -> None:
        batch = decoded()
        statistics(batch)
        resize(batch["pixels"])

    given = Batch({"row": np.arange(len(files)), "pixels": pictures})
    return {"decode": decoded, "statistics": lambda: statistics(given), "all three": everything}


def opencv_statistics(picture: np.ndarray) -> tuple[float, float, float]:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    histogram = cv2.calcHist([grey], [0], None, [256], [0, 256]) / grey.size
    histogram = histogram[histogram > 0]
    entropy = float(-(histogram * np.log2(histogram)).sum())
    _, deviation = cv2.meanStdDev(grey)
    _, sharpness = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    return float(deviation[0, 0]), float(sharpness[0, 0]) ** 2, entropy


def peer(
    decode: Callable[[bytes], np.ndarray], files: list[bytes], pictures: list[np.ndarray], inputs: list[ImageInput],
    pool: ThreadPoolExecutor,
) -> dict[str, Job]:  # fmt: skip
    """A peer that decodes its own way; statistics by OpenCV, resizing by Pillow, which the models were trained with."""

    def everything(data: bytes) -> None:
        picture = decode(data)
        opencv_statistics(picture)
        for wanted in inputs:
            resized(Image.fromarray(picture), wanted)

    return {
        "decode": lambda: list(pool.map(decode, files)),
        "statistics": lambda: list(pool.map(opencv_statistics, pictures)),
        "all three": lambda: list(pool.map(everything, files)),
    }


def opencv_decode(data: bytes) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "OpenCV": opencv_decode,
    "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    "simplejpeg": lambda data: simplejpeg.decode_jpeg(data, "RGB"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="INPUT", help="shards with pictures")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    files = photographs(options.data, options.pictures)
    pictures = [DECODERS["Pillow"](data) for data in files]
    models = load_recipe("embedded").models
    inputs = [
        card.image_input
        for role in ("image_embedding", "image_safety")
        if (card := load_card(models[role])).image_input
    ]
    cv2.setNumThreads(1)
    available = sorted(os.sched_getaffinity(0))
    for cores in range(1, min(2, len(available)) + 1):
        os.sched_setaffinity(0, available[:cores])
        with open_device(threads=cores) as device, ThreadPoolExecutor(cores) as pool:
            sides = {"ours": ours(files, pictures, inputs, device)}
            sides |= {name: peer(decode, files, pictures, inputs, pool) for name, decode in DECODERS.items()}
            report(measure(sides, options.rounds), pictures, cores)
    return 0


def measure(sides: dict[str, dict[str, Job]], rounds: int) -> dict[str, dict[str, float]]:
    """Side → job → median seconds."""
    seconds: dict[str, dict[str, list[float]]] = {side: {job: [] for job in jobs} for side, jobs in sides.items()}
    for number in range(rounds + 1):
        for side, jobs in sides.items():
            for job, run in jobs.items():
                started = time.perf_counter()
                run()
                if number:  # the first round warms up: caches, compiled kernels
                    seconds[side][job].append(time.perf_counter() - started)
    return {side: {job: median(values) for job, values in jobs.items()} for side, jobs in seconds.items()}


def report(seconds: dict[str, dict[str, float]], pictures: list[np.ndarray], cores: int) -> None:
    megapixels = sum(picture.size for picture in pictures) / 3e6 / len(pictures)
    title = f"{len(pictures)} JPEG files of {megapixels:.2f} megapixels, {cores} core{'s' * (cores > 1)}: ms a picture"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("")
    for job in seconds["ours"]:
        table.add_column(job, justify="right")
        table.add_column("ours is", justify="right", style="dim")
    for side, jobs in seconds.items():
        cells = []
        for job, value in jobs.items():
            ratio = value / seconds["ours"][job]
            cells += [f"{1000 * value / len(pictures):.2f}", "" if side == "ours" else f"{ratio:.2f} ×"]
        table.add_row(side, *cells)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
