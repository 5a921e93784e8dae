"""Measures near-duplicate search, over vectors that are already on the device, and FAISS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from danqing.engine.core.device import Device, open_device
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.sets import chains
from danqing.profiling.bench.gpu.figures import Figure
from danqing.profiling.bench.gpu.kernels import WITHIN
from danqing.profiling.bench.gpu.material import Job, planted_on

DIMENSION, NEAREST, ASKED = 768, 64, 16_384
BAR = "≥ 90,000: NeMo Curator's semantic deduplication, a GPU of eight H100s"


def measure(job: Job) -> Iterator[Figure]:
    with open_device(job.device) as device:
        vectors = planted_on(device, job.rows, DIMENSION)
        chains(Features(device, [vectors[:9000]]), WITHIN)  # compiles the kernels
        started = time.perf_counter()
        labels = chains(Features(device, [vectors]), WITHIN)
        seconds = time.perf_counter() - started
        groups = len(np.unique(labels))
        started = time.perf_counter()
        device.up(np.zeros((min(job.rows, 100_000), DIMENSION), np.float16))
        device.wait()
        upload = time.perf_counter() - started
        yield Figure(f"exact groups of {job.rows:,} × {DIMENSION}, tiles", job.rows / seconds, "rows/s", BAR)
        yield Figure("groups found", groups)
        yield Figure("upload of the vectors", min(job.rows, 100_000) / upload, "rows/s")
        with suppress(ImportError):
            name = f"FAISS flat, the {NEAREST} nearest of {min(ASKED, job.rows):,} rows"
            yield Figure(name, _faiss_rate(device, vectors), "rows/s", BAR)


def _faiss_rate(device: Device, vectors: Any) -> float:
    """Rows a second for which FAISS finds the nearest neighbours among all; on a GPU its index stores float16."""
    import faiss

    rows = vectors.astype(np.float32)
    if device.kind == "cuda":
        resources, config = faiss.StandardGpuResources(), faiss.GpuIndexFlatConfig()
        config.useFloat16, config.device = True, device.number
        index = faiss.GpuIndexFlatIP(resources, DIMENSION, config)
        device.wait()
        index.add_ex(len(rows), faiss.cast_integer_to_void_ptr(rows.data.ptr), faiss.Float32)
        asked = device.down(rows[:ASKED])
    else:
        index, asked = faiss.IndexFlatIP(DIMENSION), rows[:ASKED]
        index.add(rows)
    index.search(asked[:256], NEAREST)
    started = time.perf_counter()
    index.search(asked, NEAREST)
    return len(asked) / (time.perf_counter() - started)
