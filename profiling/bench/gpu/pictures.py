"""Measures JPEG files to the models' inputs: the codec alone, each resizer alone, and all picture stages in turn."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device, open_device
from danqing.engine.stages.base import Context
from danqing.engine.stages.decode import Decode, open_decoder
from danqing.engine.stages.header import Header
from danqing.engine.stages.pixels import PixelStatistics
from danqing.engine.stages.resize import Resizer, chosen_resizer, open_resizer
from danqing.profiling.bench.gpu.material import DISTINCT_JPEGS, JPEG_SIDE, Figure, Job, jpegs, rate
from danqing.trt_models.card import ImageInput
from danqing.trt_models.model_set import ModelSet

BATCH = 256
INPUTS = [ImageInput(224, 224, "stretch", "cubic"), ImageInput(224, 256)]
"""Chinese-CLIP's input and a classifier's."""


def measure(job: Job) -> Iterator[Figure]:
    """Yields rates of the codec, of each resizer and of all picture stages, and shares of values equal to Pillow's."""
    files = jpegs(min(DISTINCT_JPEGS, job.pairs))
    with open_device(job.device) as device, open_device() as host:
        context = Context(device, ModelSet({}), frozenset())
        decoder, size = open_decoder(device), min(BATCH, len(files))
        resizers = {name: open_resizer(INPUTS, device, name) for name in ("dali", "kernel")}
        default = chosen_resizer("auto", device.kind)
        resize = resizers[default]
        batches = [files[start : start + size] for start in range(0, len(files) - size + 1, size)]
        stages = [Header(context), Decode(context), PixelStatistics(context)]
        decoded = decoder.decode(batches[0])
        pillows = open_resizer(INPUTS, host)([np.ascontiguousarray(device.down(picture)) for picture in decoded])
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
        yield Figure(f"JPEG {JPEG_SIDE} × {JPEG_SIDE}, mean size", kilobytes, "kB")
        yield Figure("pictures decoded, codec alone", rate(decode, count, device), "1/s")
        for name, resizer in resizers.items():
            speed = rate(partial(resizer, decoded), size, device)
            yield Figure(f"pictures resized to two inputs, {name}", speed, "1/s")
            for wanted, share in zip(INPUTS, _equal_shares(resizer, decoded, pillows, device), strict=True):
                yield Figure(f"{name}, values equal to Pillow's, {wanted.fit}", 100 * share, "%")
        yield Figure(f"header, decode, statistics, resize ({default}) in turn", rate(in_turn, count, device), "1/s")


def _equal_shares(resizer: Resizer, decoded: list[Any], pillows: list[np.ndarray], device: Device) -> list[float]:
    """For each input, the share of a resizer's values that equal Pillow's on the same decoded pixels.

    `pillows`: made by our kernel for CPU cores, which tests compare with Pillow bit by bit.
    """
    found = [device.down(batch) for batch in resizer(decoded)]
    return [float((ours == theirs).mean()) for ours, theirs in zip(found, pillows, strict=True)]
