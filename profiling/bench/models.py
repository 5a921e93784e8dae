"""The models' sessions beside plain ONNX Runtime and PyTorch: rows a second, in one run.

    python -m danqing.profiling.bench.models --data 'photos/*.tar'
    python -m danqing.profiling.bench.models --data 'photos/*.tar' --checkpoint chinese-clip-vit-b-16=FOLDER

The default models are run as the engine runs them and, beside that, as one would without it: ONNX Runtime's own session
options, a row at a time, on the file that the package ships where it ships ONNX. With a published checkpoint (or one of
random weights in that layout) its image tower is exported and compiled to int8, and
transformers' own model runs beside it. Pictures are real; rounds are interleaved, medians of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
from rich import box
from rich.table import Table

from danqing.engine.core.device import Device, open_device
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.stages.resize import open_resizer
from danqing.profiling.bench import machine
from danqing.profiling.bench.images import DECODERS, console, photographs
from danqing.profiling.torch_peer import torch_job
from danqing.trt_models.card import Card, load_card
from danqing.trt_models.compile.compilers import compile_engine
from danqing.trt_models.engines import open_model
from danqing.trt_models.export import open_nsfw
from danqing.trt_models.export.from_checkpoint import export
from danqing.trt_models.package_files import package_file
from danqing.trt_models.store import onnx_path

Job = Callable[[], Any]
CAPTIONS = 64


def plain(path: Path, given: str, rows: np.ndarray, layout: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> Job:
    """ONNX Runtime as it comes, a row at a time."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda: [session.run(None, {given: layout(rows[at : at + 1])}) for at in range(len(rows))]


def default_models(pictures: list[np.ndarray], device: Device) -> dict[str, dict[str, Job]]:
    """Model → who runs it → the job."""
    models = load_recipe("embedded").models
    jobs: dict[str, dict[str, Job]] = {}
    for role in ("image_embedding", "image_safety"):
        card = load_card(models[role])
        rows = inputs(card, pictures, device)
        ours = open_model(card, device, None).session
        given, path = "pixels", onnx_path(card)
        jobs[card.name] = {"ours": lambda ours=ours, rows=rows: ours.run(pixels=rows)}  # type: ignore[misc]
        if card.name == "open-nsfw":  # the package's own file takes prepared pixels
            path = package_file(open_nsfw.PACKAGE, open_nsfw.WEIGHTS)
            given = onnxruntime.InferenceSession(str(path)).get_inputs()[0].name
            jobs[card.name]["plain"] = plain(path, given, rows, lambda x: x.astype(np.float32) - open_nsfw.MEAN)
        else:
            jobs[card.name]["plain"] = plain(path, given, rows)
    card = load_card(models["text_embedding"])
    tokens = np.random.default_rng(0).integers(5, 9000, (CAPTIONS, 16), dtype=np.int32)
    text = open_model(card, device, None).session
    jobs[card.name] = {"ours": lambda: text.run(tokens=tokens), "plain": plain(onnx_path(card), "tokens", tokens)}
    return jobs


def inputs(card: Card, pictures: list[np.ndarray], device: Device) -> np.ndarray:
    assert card.image_input is not None
    rows: np.ndarray = open_resizer([card.image_input], device)(pictures)[0]
    return rows


def checkpoint_models(
    family: str, folder: Path, pictures: list[np.ndarray], device: Device
) -> dict[str, dict[str, Job]]:
    from danqing.profiling.bench.published import mend_torchvision

    mend_torchvision()
    card = load_card(f"{family}-image")
    export(card, folder)
    rows = inputs(card, pictures, device)
    ours = open_model(card, device, None).session
    small = open_model(card, device, compile_engine(card, "int8", "cpu")).session
    peers = {
        name: torch_job(card, folder, {"pixels": rows}, device.threads, compiled)
        for name, compiled in (("PyTorch", False), ("PyTorch, compiled", True))
    }
    jobs = {"ours": lambda: ours.run(pixels=rows), "ours, int8": lambda: small.run(pixels=rows)}
    return {card.name: jobs | {"plain": plain(onnx_path(card), "pixels", rows)} | peers}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="INPUT", help="shards with pictures")
    parser.add_argument("--checkpoint", metavar="FAMILY=FOLDER", help="a published checkpoint, e.g. of Chinese-CLIP")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    pictures = [DECODERS["Pillow"](data) for data in photographs(options.data, options.pictures)]
    with tempfile.TemporaryDirectory() as store, open_device() as device:
        os.environ["DANQING_CACHE"] = store
        jobs = default_models(pictures, device)
        if options.checkpoint:
            family, _, folder = options.checkpoint.partition("=")
            jobs |= checkpoint_models(family, Path(folder), pictures, device)
        report(jobs, options.rounds, len(pictures))
    console.print(machine(("onnxruntime", "torch", "transformers")))
    return 0


def report(jobs: dict[str, dict[str, Job]], rounds: int, pictures: int) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("model", "", "rows/s", "against plain"):
        table.add_column(heading, justify="right" if heading in ("rows/s", "against plain") else "left")
    for name, sides in jobs.items():
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(rounds + 1):
            for side, run in sides.items():
                started = time.perf_counter()
                run()
                if number:
                    seconds[side].append(time.perf_counter() - started)
        rows = CAPTIONS if "text" in load_card(name).task else pictures
        for side, values in seconds.items():
            ratio = median(seconds["plain"]) / median(values)
            table.add_row(name, side, f"{rows / median(values):,.1f}", "" if side == "plain" else f"{ratio:.2f} ×")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
