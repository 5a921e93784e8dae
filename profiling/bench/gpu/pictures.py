"""Measures JPEG files to the models' inputs: the codec alone, resizing alone, and all picture stages in turn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from engine.batch import Batch
from engine.device import open_device
from engine.stages.base import Context
from engine.stages.decode import Decode, open_decoder
from engine.stages.header import Header
from engine.stages.pixels import PixelStatistics
from engine.stages.resize import open_resizer
from profiling.bench.gpu.figures import Figure, rate
from profiling.bench.gpu.material import SIDE, Job, jpegs
from trt_models.card import ImageInput
from trt_models.store import ModelSet

DISTINCT, BATCH = 512, 256
INPUTS = [ImageInput(224, 224, "stretch", "cubic"), ImageInput(224, 256)]
"""Chinese-CLIP's input and a classifier's."""


def measure(job: Job) -> Iterator[Figure]:
    files = jpegs(min(DISTINCT, job.pairs))
    with open_device(job.device) as device:
        context = Context(device, ModelSet({}), frozenset())
        decoder, resize, size = open_decoder(device), open_resizer(INPUTS, device), min(BATCH, len(files))
        batches = [files[start : start + size] for start in range(0, len(files) - size + 1, size)]
        stages = [Header(context), Decode(context), PixelStatistics(context)]
        decoded = decoder.decode(batches[0])
        count = size * len(batches)

        def in_turn() -> None:
            for some in batches:
                batch = Batch({"row": np.arange(size), "image": some, "error": [None] * size})
                for stage in stages:
                    stage(batch)
                resize(batch["pixels"])
                device.wait()

        def decode() -> None:
            for some in batches:
                decoder.decode(some)
                device.wait()

        kilobytes = sum(map(len, files)) / len(files) / 1000
        yield Figure(f"JPEG {SIDE} × {SIDE}, mean size", kilobytes, "kB")
        yield Figure("pictures decoded, codec alone", rate(decode, count, device), "1/s")
        yield Figure("pictures resized to two inputs", rate(lambda: resize(decoded), size, device), "1/s")
        yield Figure("header, decode, statistics, resize in turn", rate(in_turn, count, device), "1/s")
