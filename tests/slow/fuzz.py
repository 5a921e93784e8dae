"""Runs mutated pictures through the picture stages: a broken file must not cost more than its own row.

    pytest tests/slow/fuzz.py -s
    FUZZ_DATA='photos/*.tar' FUZZ_FILES=100000 FUZZ_SEED=2 pytest tests/slow/fuzz.py -s

Files of every format (default: 20,000, from the demo's photographs) are cut, spliced, flipped and overwritten, and go
through header, decode, statistics and resizing in batches, with a sound picture at every eighth place. It counts
batches that raise, batches that kill the process (each runs in a child, which is replaced), sound pictures whose
figures change, and pictures that fail without a message.
"""

from __future__ import annotations

import io
import os
import random
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
from danqing.profiling.bench.gpu.material import demo_photographs
from danqing.trt_models.card import ImageInput
from danqing.trt_models.model_set import ModelSet

DATA, FILES, SEED = (os.environ.get(f"FUZZ_{name}", "") for name in ("DATA", "FILES", "SEED"))
BATCH, SOUND_EVERY, SOURCES = 64, 8, 120
FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("BMP", {}),
    ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("JPEG2000", {}), ("GIF", {}), ("PPM", {}),
)  # fmt: skip
INPUTS = [ImageInput(224, 256)]


def sources(count: int) -> list[bytes]:
    """Photographs as they are, and small ones in every format."""
    if DATA:
        samples = (sample for shard in find_shards([DATA]) for sample in open_shard(shard, Layout()))
        photos = [sample.image for sample in samples if sample.image]
    else:
        photos = [path.read_bytes() for path in demo_photographs()]
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
    """Breaks a file in one to four places, half of them in the first 200 bytes, where headers are."""
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


def discard_stderr() -> None:
    """Codecs print a line for every broken file."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def judge(files: list[bytes]) -> tuple[list[tuple[float, ...]], list[str | None]]:
    """Runs the picture stages; returns each file's figures, NaN where it has none, and its error."""
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


def test_a_broken_picture_costs_only_its_own_row() -> None:
    chance, files_wanted = random.Random(int(SEED or 0)), int(FILES or 20_000)
    originals = sources(SOURCES)
    sound = originals[: BATCH // SOUND_EVERY]
    expected, _ = judge(sound)

    def pool() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"), discard_stderr)

    bad = ("batches that killed the process", "batches that raised", "sound pictures that changed",
           "refused without a reason")  # fmt: skip
    counts: Counter[str] = Counter(dict.fromkeys(("files", *bad), 0))
    worker = pool()
    while counts["files"] < files_wanted:
        places = [place // SOUND_EVERY if place % SOUND_EVERY == 0 else None for place in range(BATCH)]
        files = [
            mutated(chance.choice(originals), chance, originals) if place is None else sound[place] for place in places
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
            print(f"raised: {problem!r}")
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
    print(*(f"{count:8,}  {name}" for name, count in counts.items()), sep="\n")
    assert not any(counts[name] for name in bad)
