"""Measures the kernels for captions and pixels, near-duplicate search and SELECT: parity with the CPU, and rates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from danqing.engine.core import libcudf
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.strings import Strings
from danqing.engine.core.text_column import TextColumn
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.folding import Folding
from danqing.engine.decide.dedup.groups import likely_components, near_components
from danqing.engine.decide.dedup.index import INDEXES
from danqing.engine.decide.dedup.neighbours import Tile
from danqing.engine.decide.dedup.products import PRODUCTS
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.report.balance import MAX_CLUSTERS, MAX_ROWS, ROWS_PER_CLUSTER, cluster
from danqing.engine.run.settings import Settings
from danqing.engine.select.frames import measures_of
from danqing.engine.select.selection import select
from danqing.engine.stages.base import Context
from danqing.engine.stages.characters import cleaning_tables
from danqing.engine.stages.decode import open_decoder
from danqing.kernels.pictures.pixels import pixel_statistics
from danqing.kernels.text.cleaning import clean
from danqing.profiling.bench.duplicates import DIMENSION, RECALL, WITHIN, planted
from danqing.profiling.bench.gpu.material import Figure, Job, captions, demo_photographs, rate
from danqing.profiling.bench.harness import SEED
from danqing.trt_models.model_set import ModelSet

SIZES = ((50_000, 768), (300_000, 64))
"""Rows and numbers of vectors that every search compares, beside `--rows` of 768."""
UPLOADED, WARM_UP_ROWS, WARM_UP_VECTORS, ALL_ROWS, NEW_ROWS = 100_000, 64, 9000, 2_000_000, 1 << 18
BATCH_CAPTIONS = 16_384
"""About the captions of a batch on a GPU."""
BAR = "≥ 90,000: NeMo Curator's semantic deduplication, a GPU of eight H100s"
SELECT_BAR = "2,000,000: a crawl of 1.05 billion rows in nine minutes"
LEFT_OUT = ("blocked_source", "unknown_tokens")
"""Criteria that need a list of the user, or the text tower."""


def measure_kernels(job: Job) -> Iterator[Figure]:
    """Yields differences of the kernels to the CPU's, then rates of captions and pictures."""
    lines = captions(job.captions, min(job.rows, 20_000))
    photos = [path.read_bytes() for path in demo_photographs()]
    with open_device(job.device) as device, open_device() as host:
        started = time.perf_counter()
        measures_of(lines[:WARM_UP_ROWS], device)
        first = time.perf_counter() - started
        pixels = [picture for picture in open_decoder(host).decode(photos) if picture is not None]
        there = [device.up(picture) for picture in pixels]
        column = pa.array(captions(job.captions, job.rows), pa.large_string())
        yield Figure("first launch of the text kernels", first, "s")
        yield Figure("captions whose measures differ from the CPU's", _unequal_measures(lines, device, host), "rows")
        ours, theirs = (_cleaned(lines, where) for where in (device, host))
        differing = pc.sum(pc.not_equal(ours, theirs)).as_py()
        yield Figure("captions whose cleaned text differs", differing, "rows")
        ours, theirs = (_classes(lines, where) for where in (device, host))
        yield Figure("captions whose classification differs", int((ours != theirs).sum()), "rows")
        found, expected = device.down(pixel_statistics(device, there)), pixel_statistics(host, pixels)
        difference = float(np.max(np.abs(found - expected) / np.maximum(np.abs(expected), 1e-12)))
        yield Figure("pixel statistics, largest relative difference", difference)
        vectors = planted(device, min(job.rows, 30_000), 256, SEED)
        ours = near_components(Features(device, [vectors]), WITHIN)
        theirs = near_components(Features(host, [device.down(vectors)]), WITHIN)
        yield Figure("rows whose near-duplicate group differs", int((ours != theirs).sum()), "rows")
        speed = rate(lambda: measures_of(column, device), job.rows, device)
        yield Figure(f"captions, column of {job.rows:,} with its upload", speed, "1/s", "about 100,000 a core of a CPU")
        yield Figure("pixel statistics", rate(lambda: pixel_statistics(device, there), len(there), device), "1/s")


def _unequal_measures(lines: list[str], device: Device, host: Device) -> int:
    """Number of rows of which some measure differs by more than 1e-5 of its value."""
    wrong = np.zeros(len(lines), bool)
    expected = measures_of(lines, host)
    for name, column in measures_of(lines, device).items():
        wrong |= ~np.isclose(device.down(column), expected[name], rtol=1e-5, atol=1e-6, equal_nan=True)
    return int(wrong.sum())


def _context(device: Device) -> Context:
    return Context(device, ModelSet(load_recipe("embedded").models), frozenset())


def _cleaned(lines: list[str], device: Device) -> pa.Array:
    return clean(device, TextColumn.of(lines).strings(device), cleaning_tables()).text.on_host(device).arrow()


def _classes(lines: list[str], device: Device) -> Any:
    classify = _context(device).models.text_classifier("caption_safety", device)
    return device.down(classify(TextColumn.of(lines)))


def measure_neighbours(job: Job) -> Iterator[Figure]:
    """Yields figures of every search for near-duplicates, over vectors that are already on the device."""
    with open_device(job.device) as device:
        for rows, dimension in {(min(rows, job.rows), dimension): None for rows, dimension in SIZES}:
            yield from _measure_searches(device, rows, dimension)
        yield from _measure_searches(device, job.rows, DIMENSION)
        uploaded = min(job.rows, UPLOADED)
        started = time.perf_counter()
        device.up(np.zeros((uploaded, DIMENSION), np.float16))
        device.wait()
        yield Figure("upload of the vectors", uploaded / (time.perf_counter() - started), "rows/s")


def _measure_searches(device: Device, rows: int, dimension: int) -> Iterator[Figure]:
    """Yields figures of each search over some rows, the exact ones last, since FAISS's takes longest.

    Of more than `ALL_ROWS` rows, the exact searches compare the last `NEW_ROWS` with all; the rate of all is computed.
    """
    features, of = Features(device, [planted(device, rows, dimension, SEED)]), f"{rows:,} × {dimension}"
    known = max(rows - NEW_ROWS, 0) if rows > ALL_ROWS else 0
    pairs, compared_before = (n * (n - 1) / 2 for n in (rows, known))
    floor = pairs / _product_rate(features)
    yield Figure(f"{of}, products of all pairs alone", rows / floor, "rows/s")
    # Tiles compare each pair once, FAISS asks for each row among all.
    whole = {"tiles": pairs / (pairs - compared_before), "faiss": rows / (rows - known)}
    exact: np.ndarray | None = None
    for index, recall in (("tiles", 1.0), ("lists", RECALL), ("faiss", RECALL), ("faiss", 1.0)):
        name = f"{of}, {index}" if recall == 1 else f"{of}, {index}, recall {recall}"
        if missing := INDEXES[index].missing(device.kind):
            yield Figure(name, f"not installed: {missing}")
            continue
        with _lists_of_few_rows(device.kind):
            for some in (features.take(slice(0, WARM_UP_VECTORS)), features):  # the first compiles the kernels
                measured, started = None, time.perf_counter()
                if recall == 1:
                    earlier = np.arange(known) if some is features else None
                    labels = near_components(some, WITHIN, earlier=earlier, index=index)
                else:
                    labels, measured = likely_components(some, WITHIN, recall, index=index)
        seconds = (time.perf_counter() - started) * (whole[index] if recall == 1 else 1)
        yield Figure(name, rows / seconds, "rows/s", BAR)
        if recall == 1:
            yield Figure(f"{name}: products alone ÷ it", floor / seconds)
        else:
            yield Figure(f"{name}: measured", "all pairs were compared" if measured is None else str(measured))
        if exact is None:
            exact = labels
            yield Figure(f"{of}, groups found", len(np.unique(labels)))
        elif recall == 1 or not known:
            yield Figure(f"{name}: rows in another group", int((labels != exact).sum()), "rows")


@contextmanager
def _lists_of_few_rows(kind: str) -> Iterator[None]:
    """Makes `lists` search in lists on a GPU, too, where it compares all pairs of fewer than a million rows."""
    usual = PRODUCTS[kind]
    PRODUCTS[kind] = usual._replace(exact_rows=PRODUCTS["cpu"].exact_rows)
    try:
        yield
    finally:
        PRODUCTS[kind] = usual


def measure_balance(job: Job) -> Iterator[Figure]:
    """Yields the time of the report's k-means, which FAISS runs on the CPU."""
    with open_device() as host:
        rows = min(job.rows, MAX_ROWS)
        vectors = np.asarray(planted(host, rows, DIMENSION, SEED), np.float32)
    clusters, found = max(min(MAX_CLUSTERS, rows // ROWS_PER_CLUSTER), 1), []
    for _ in range(2):
        started = time.perf_counter()
        found.append(cluster(vectors, clusters))
    yield Figure(f"k-means of {rows:,} × {DIMENSION}, {clusters} clusters", time.perf_counter() - started, "s")
    yield Figure("rows in another cluster the second time", int((found[0] != found[1]).sum()), "rows")


def _product_rate(features: Features) -> float:
    """Pairs a second whose folded vectors are multiplied, without anything else."""
    fold, tile = Folding.fit(features, 1 - WITHIN), Tile(features)
    block = fold(features.take(slice(0, features.products.tile)))
    return rate(lambda: tile.product(block, block), len(block) ** 2, features.device)


def _measure_copies(lines: list[str], device: Device) -> Iterator[Figure]:
    """Yields rates of taking half of the rows in another order and of joining two halves, by each implementation."""
    column = TextColumn.of(lines)
    strings, rows = column.strings(device), np.random.default_rng(SEED).permutation(len(lines))[: len(lines) // 2]
    halves, library = [half for _, half in strings.parts(device, -(-len(lines) // 2))], "Arrow"
    texts = column[: halves[0].rows], column[halves[0].rows :]
    take, join = partial(column.take, rows), partial(TextColumn.concat, texts)
    if libcudf.serves(device):
        library = "libcudf"
        take = partial(_made, libcudf.gather, strings, rows, device)
        join = partial(_made, libcudf.concatenate, halves, device)
    for name, ours, theirs, count in (
        ("taken", partial(_made, Strings.take, strings, rows, device), take, len(rows)),
        ("joined", partial(_made, Strings.concat, halves, device), join, len(lines)),
    ):
        unequal = pc.not_equal(pc.fill_null(ours().arrow(), ""), pc.fill_null(theirs().arrow(), ""))
        yield Figure(f"rows {name}, texts that differ", pc.sum(unequal).as_py(), "rows")
        for side, work in (("array code", ours), (library, theirs)):
            yield Figure(f"rows {name} of {len(lines):,}, {side}", rate(work, count, device), "rows/s")


def _made(function: Callable[..., Strings], *arguments: Any) -> TextColumn:
    return TextColumn.made(function(*arguments), arguments[-1])


def measure_tables(job: Job) -> Iterator[Figure]:
    """Yields figures of texts taken and joined, of a cuDF column measured without a copy, and of SELECT on files."""
    lines = captions(job.captions, job.rows)
    with open_device(job.device) as device:
        for count in sorted({min(BATCH_CAPTIONS, job.rows), job.rows}):
            yield from _measure_copies(lines[:count], device)
        if device.kind == "cuda":
            try:
                import cudf

                column = cudf.Series(pa.array(lines, pa.large_string()))
                figure = rate(lambda: measures_of(column, device), job.rows, device)
                yield Figure(f"captions, cuDF column of {job.rows:,}", figure, "1/s")
            except ImportError as problem:
                yield Figure("captions, cuDF column", f"not installed: {problem}")
    urls = np.char.add("https://example.com/", np.arange(job.rows).astype(str))
    table, recipe = pa.table({"url": urls, "caption": lines}), load_recipe("embedded")
    recipe = replace(recipe, criteria=tuple(c for c in recipe.criteria if c.name not in LEFT_OUT))
    for rows in (min(WARM_UP_ROWS, job.rows), job.rows):
        path = job.scratch / f"urls-{rows}.parquet"
        pq.write_table(table.slice(0, rows), path)
        started = time.perf_counter()
        chosen = select([str(path)], job.scratch / f"selected-{rows}", recipe, settings=Settings(device=job.device))
        seconds = time.perf_counter() - started
    yield Figure(f"SELECT of {job.rows:,} rows, Parquet to Parquet", job.rows / seconds, "rows/s", SELECT_BAR)
    if job.device != "cpu":
        for side in ("up", "down"):
            copied = sum(getattr(span, side) for span in chosen.spans.values()) / job.rows
            yield Figure(f"SELECT, bytes {side} a row (of text: {table.nbytes / job.rows:.0f})", copied, "B")
