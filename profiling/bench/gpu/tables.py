"""Measures the captions of a cuDF column, without a copy, and SELECT from file to file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.device import open_device
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.run.settings import Settings
from danqing.engine.select.frames import measure_captions
from danqing.engine.select.selection import select
from danqing.profiling.bench.gpu.figures import Figure, rate
from danqing.profiling.bench.gpu.material import Job, captions

WARM_UP_ROWS = 64
LEFT_OUT = ("blocked_source", "unknown_tokens")
"""Criteria that need a list of the user, or the text tower."""


def measure(job: Job) -> Iterator[Figure]:
    lines = captions(job.captions, job.rows)
    with open_device(job.device) as device:
        if device.kind == "cuda":
            try:
                import cudf

                column = cudf.Series(pa.array(lines, pa.large_string()))
                figure = rate(lambda: measure_captions(column, device), job.rows, device)
                yield Figure(f"captions, cuDF column of {job.rows:,}", figure, "1/s")
            except ImportError as problem:
                yield Figure("captions, cuDF column", f"not installed: {problem}")
    urls = np.char.add("https://example.com/", np.arange(job.rows).astype(str))
    table = pa.table({"url": urls, "caption": lines})
    recipe = load_recipe("embedded")
    recipe = replace(recipe, criteria=tuple(c for c in recipe.criteria if c.name not in LEFT_OUT))
    settings = Settings(device=job.device)
    for rows in (min(WARM_UP_ROWS, job.rows), job.rows):
        path = job.scratch / f"urls-{rows}.parquet"
        pq.write_table(table.slice(0, rows), path)
        started = time.perf_counter()
        select([str(path)], job.scratch / f"selected-{rows}", recipe, settings=settings)
        seconds = time.perf_counter() - started
    yield Figure(f"SELECT of {job.rows:,} rows, Parquet to Parquet", job.rows / seconds, "rows/s")
