"""Mutated pictures through the picture stages: does a broken file ever cost more than its own row?

    python -m danqing.profiling.bench.fuzz --data 'photos/*.tar' --files 20000

Real files of every format are cut, spliced, flipped and overwritten, and go through header, decode, statistics and
resizing in batches, a sound picture at every eighth place. Counted: batches that raise, batches that kill the process
(each runs in a child, which is replaced if it dies), sound pictures whose figures change, and pictures that fail
without a reason in words.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import numpy as np
from PIL import Image

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import open_device
from danqing.engine.sources import Layout, find_shards, open_shard
from danqing.engine.stages.base import Context
from danqing.engine.stages.decode import Decode
from danqing.engine.stages.header import Header
from danqing.engine.stages.pixels import PixelStatistics
from danqing.engine.stages.resize import open_resizer
from danqing.trt_models.card import ImageInput
from danqing.trt_models.model_set import ModelSet

BATCH, SOUND_EVERY = 64, 8
FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("BMP", {}),
    ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("JPEG2000", {}), ("GIF", {}), ("PPM", {}),
)  # fmt: skip
INPUTS = [ImageInput(224, 256)]


def seeds(data: Sequence[str], count: int) -> list[bytes]:
    """Photographs as they are, and small ones in every format."""
    samples = (sample for shard in find_shards(data) for sample in open_shard(shard, Layout()))
    photos = [sample.image for sample in samples if sample.image]
    out = photos[:count]
    for number, photo in enumerate(photos[:count]):
        form, options = FORMS[number % len(FORMS)]
        with Image.open(io.BytesIO(photo)) as picture:
            small = picture.convert("P" if form == "GIF" else "RGB").resize((96, 64))
        buffer = io.BytesIO()
        small.save(buffer, form, **options)
        out.append(buffer.getvalue())
    return out


def mutated(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """One file, broken in one to four ways; half of the breaks fall into the first 200 bytes, where headers are."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(out), 200) if chance.random() < 0.5 else len(out)) if out else 0
        kind = chance.randrange(6)
        if kind == 0:
            del out[at:]
        elif kind == 1:
            out[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 2:
            out[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
        elif kind == 3:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            out[at : at + 64] = other[start : start + 64]
        elif kind == 4:
            del out[at : at + chance.randint(1, 64)]
        else:
            out[at:at] = out[at : at + chance.randint(1, 64)]
    return bytes(out)


def hush() -> None:
    """Codecs print a line for every broken file."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def judge(files: list[bytes]) -> tuple[list[tuple[float, ...]], list[str | None]]:
    """The figures and the error of each file; NaN where it has none."""
    with open_device(threads=1) as device:
        context = Context(device, ModelSet({}), frozenset(), max_pixels=50_000_000)
        batch = Batch({"row": np.arange(len(files)), "image": files, "error": [None] * len(files)})
        Header(context)(batch)
        errors = list(batch["error"])
        figures: list[tuple[float, ...]] = [(np.nan,)] * len(files)
        alive = batch.take(np.array([error is None for error in errors], bool))
        Decode(context)(alive)
        for row, error in zip(alive["row"].tolist(), alive["error"], strict=True):
            errors[row] = error
        alive = alive.take(np.array([error is None for error in alive["error"]], bool))
        PixelStatistics(context)(alive)
        (small,) = open_resizer(INPUTS, device)(alive["pixels"])
        for position, row in enumerate(alive["row"].tolist()):
            statistics = (alive[name][position] for name in PixelStatistics.produces)
            figures[row] = (*map(float, statistics), float(small[position].sum()))
    return figures, errors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="INPUT", help="shards with pictures")
    parser.add_argument("--files", type=int, default=20_000, help="mutated files (default: 20000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    sources = seeds(options.data, 120)
    sound = sources[: BATCH // SOUND_EVERY]
    expected, _ = judge(sound)

    def pool() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"), hush)

    counts: Counter[str] = Counter()
    started, worker = time.perf_counter(), pool()
    while counts["files"] < options.files:
        places = [place // SOUND_EVERY if place % SOUND_EVERY == 0 else None for place in range(BATCH)]
        files = [
            mutated(chance.choice(sources), chance, sources) if place is None else sound[place] for place in places
        ]
        counts["files"] += places.count(None)
        try:
            figures, errors = worker.submit(judge, files).result()
        except BrokenProcessPool:
            counts["batches that killed the process"] += 1
            worker = pool()
            continue
        except Exception as problem:
            counts["batches that raised"] += 1
            print(f"raised: {problem!r}", file=sys.stderr)
            continue
        for place, figure, error in zip(places, figures, errors, strict=True):
            if place is not None:
                counts["sound pictures"] += 1
                counts["sound pictures that changed"] += figure != expected[place] or error is not None
            elif error is None:
                counts["still a picture"] += 1
            else:
                counts["refused with a reason"] += 1
                counts["refused without a reason"] += not error.strip(": ")
    worker.shutdown()
    for name in ("batches that killed the process", "batches that raised", "sound pictures that changed",
                 "refused without a reason"):  # fmt: skip
        counts.setdefault(name, 0)
    for name, count in counts.items():
        print(f"{count:8,}  {name}")
    print(f"{time.perf_counter() - started:8,.1f}  seconds")
    bad = ("batches that killed the process", "batches that raised", "sound pictures that changed")
    return 1 if any(counts[name] for name in bad) else 0


if __name__ == "__main__":
    sys.exit(main())
