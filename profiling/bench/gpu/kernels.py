"""Measures our kernels: parity of the device's results with the CPU's, and rates."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from danqing.engine.core.device import Device, open_device
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.sets import chains
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.select.frames import measure_captions
from danqing.engine.stages.base import Context
from danqing.engine.stages.decode import open_decoder
from danqing.engine.stages.text import clean
from danqing.kernels.pictures.pixels import pixel_statistics
from danqing.kernels.text.strings import Strings
from danqing.profiling.bench.gpu.figures import Figure, count_unequal, rate
from danqing.profiling.bench.gpu.material import Job, captions, demo_photographs, planted_on
from danqing.trt_models.model_set import ModelSet

WITHIN = 0.1
CPU_CORE = "about 100,000 a core of a CPU"


def measure(job: Job) -> Iterator[Figure]:
    lines = captions(job.captions, min(job.rows, 20_000))
    photos = [path.read_bytes() for path in demo_photographs()]
    with open_device(job.device) as device, open_device() as host:
        started = time.perf_counter()
        measure_captions(lines[:64], device)
        first = time.perf_counter() - started
        pixels = [picture for picture in open_decoder(host).decode(photos) if picture is not None]
        there = [device.up(picture) for picture in pixels]
        column = pa.array(captions(job.captions, job.rows), pa.large_string())
        yield Figure("first launch of the text kernels", first, "s")
        yield Figure("captions whose measures differ from the CPU's", _unequal_measures(lines, device, host), "rows")
        yield Figure("captions whose cleaned text differs", _unequal_cleaned(lines, device, host), "rows")
        yield Figure("captions whose classification differs", _unequal_classes(lines, device, host), "rows")
        yield Figure("pixel statistics, largest relative difference", _pixel_difference(there, pixels, device, host))
        yield Figure("rows whose near-duplicate group differs", _unequal_groups(job, device, host), "rows")
        speed = rate(lambda: measure_captions(column, device), job.rows, device)
        yield Figure(f"captions, column of {job.rows:,} with its upload", speed, "1/s", CPU_CORE)
        yield Figure("pixel statistics", rate(lambda: pixel_statistics(device, there), len(there), device), "1/s")


def _unequal_measures(lines: list[str], device: Device, host: Device) -> int:
    """Number of rows of which some measure differs by more than 1e-5 of its value."""
    wrong = np.zeros(len(lines), bool)
    expected = measure_captions(lines, host)
    for name, column in measure_captions(lines, device).items():
        wrong |= ~np.isclose(device.down(column), expected[name], rtol=1e-5, atol=1e-6, equal_nan=True)
    return int(wrong.sum())


def _context(device: Device) -> Context:
    return Context(device, ModelSet(load_recipe("embedded").models), frozenset())


def _unequal_cleaned(lines: list[str], device: Device, host: Device) -> int:
    return count_unequal(clean(_context(device), lines), clean(_context(host), lines))


def _unequal_classes(lines: list[str], device: Device, host: Device) -> int:
    found = []
    for there in (device, host):
        classify = _context(there).models.text_classifier("caption_safety", there)
        found.append(there.down(classify(Strings.of(lines).on(there))))
    return int((found[0] != found[1]).sum())


def _pixel_difference(there: list[Any], pixels: list[Any], device: Device, host: Device) -> float:
    found, expected = device.down(pixel_statistics(device, there)), pixel_statistics(host, pixels)
    return float(np.max(np.abs(found - expected) / np.maximum(np.abs(expected), 1e-12)))


def _unequal_groups(job: Job, device: Device, host: Device) -> int:
    vectors = planted_on(device, min(job.rows, 30_000), 256)
    found = chains(Features(device, [vectors]), WITHIN)
    return int((found != chains(Features(host, [device.down(vectors)]), WITHIN)).sum())
