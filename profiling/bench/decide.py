"""Measures DECIDE on generated runs: time, bytes a row at the peak, open files.

    python -m danqing.profiling.bench.decide --rows 1000000,10000000
    python -m danqing.profiling.bench.decide --rows 1000000 --methods features --dimension 16 --recall 0.9

A run has shards of 10,000 rows and the columns of the recipe `embedded`. Each criterion drops 1 % of the rows, and no
row lacks a score. 30 % of the rows are in planted groups, by caption hash and by features. Each decision runs in a
process of its own. `bytes`: peak of its resident memory, less that of a run of one shard and less the features, which
are mapped, divided by the rows. `files`: largest number of open files.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.table import Table

from danqing.engine.core.columns import COLUMNS
from danqing.engine.core.device import open_device
from danqing.engine.core.progress import Silent
from danqing.engine.decide.verdicts import decide
from danqing.engine.recipe.criteria import Redundancy, Threshold
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.folder import Run
from danqing.profiling.bench import harness
from danqing.profiling.bench.duplicates import planted
from danqing.trt_models.model_set import ModelSet

SHARD_ROWS = 10_000
GROUPED_SHARE = 0.3
POLL_SECONDS = 0.02
SAME_CAPTION = Redundancy("same_caption", 0, "caption_hash")


def recipes(recall: float) -> dict[str, Recipe]:
    """Method → recipe: `embedded` without groups, with groups of equal captions, and with groups of near features."""
    own = load_recipe("embedded")
    alone = tuple(criterion for criterion in own.criteria if not isinstance(criterion, Redundancy))
    near = Redundancy("redundancy", 0.1, recall=recall)
    kinds = {"thresholds": (), "captions": (SAME_CAPTION,), "features": (near,)}
    return {name: replace(own, criteria=(*alone, *groups)) for name, groups in kinds.items()}


def hex_digits(numbers: np.ndarray) -> pa.StringArray:
    """Text of 32 hex digits for numbers, uint64 (rows,)."""
    wide = np.stack([np.zeros_like(numbers), numbers], 1).astype(">u8")
    digits = wide.tobytes().hex().encode()
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * 32
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(digits))


def make_run(folder: Path, rows: int, dimension: int) -> Run:
    """Writes a scored run of generated rows."""
    recipe = recipes(1.0)["features"]
    sizes = [min(SHARD_ROWS, rows - start) for start in range(0, rows, SHARD_ROWS)]
    shards = [
        {"number": number, "name": f"{number:05d}", "path": f"{number:05d}.tar", "bytes": 1, "first": 0, "rows": None}
        for number in range(len(sizes))
    ]
    models = ModelSet(recipe.models).hashes()
    run = Run.create(folder, recipe, {"shards": shards, "layout": {}, "models": models})
    for kind in ("scores", "features"):
        (folder / kind).mkdir()
    with open_device() as device:
        features = planted(device, rows, dimension, rows)
    chance, start = np.random.default_rng(rows), 0
    for number, size in enumerate(sizes):
        row = np.arange(start, start + size, dtype=np.uint64)
        copied = chance.random(size) < GROUPED_SHARE
        caption = np.where(copied, chance.integers(0, max(rows // 10, 1), size, np.uint64), row + np.uint64(rows))
        table = {
            "shard": pa.array([f"{number:05d}"] * size),
            "row": pa.array(range(size), pa.int32()),
            "key": pa.array(row).cast(pa.string()),
            "uid": hex_digits(row),
            "caption_hash": hex_digits(caption),
            "feature_row": pa.array(range(size), pa.int32()),
            "gated_at": pa.nulls(size, pa.string()),
            "error": pa.nulls(size, pa.string()),
        }
        for criterion in recipe.criteria:
            if isinstance(criterion, Threshold):
                good, bad = examples(criterion)
                values = np.where(chance.random(size) < 0.01, bad, good)
                table[criterion.column] = pa.array(values).cast(COLUMNS[criterion.column].type)
        pq.write_table(pa.table(table), run.scores_path(number))
        np.save(run.features_path(number), features[start : start + size])
        start += size
    return run


def examples(criterion: Threshold) -> tuple[float, float]:
    """A score that passes, and one that does not."""
    tried = np.array([0, 0.05, 0.5, 0.9, 1, 1.2, 4, 10, 90, 2000])
    if pa.types.is_integer(COLUMNS[criterion.column].type):
        tried = np.array([0, 1, 10, 90, 101])
    passes = criterion.interval.holds(tried)
    return float(tried[passes][0]), float(tried[~passes][-1])


def time_decision(method: str, folder: Path, recall: float) -> None:
    """In the child: decides once; counts the open files meanwhile."""
    run, most, stopped = Run.open(folder), [0], threading.Event()

    def count() -> None:
        while not stopped.wait(POLL_SECONDS):
            most.append(len(list(Path("/proc/self/fd").iterdir())))

    def work() -> None:
        with open_device() as device:
            decide(run, recipes(recall)[method], device, Silent())

    threading.Thread(target=count, daemon=True).start()
    harness.time_and_report(work, lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    stopped.set()
    (folder / f"{method}.json").write_text(json.dumps(max(most)))


def compare(options: Namespace, folder: Path) -> None:
    cores, sizes = sorted(os.sched_getaffinity(0)), [*map(int, options.rows.split(","))]
    methods = options.methods.split(",")
    for rows in (SHARD_ROWS, *sizes):
        make_run(folder / str(rows), rows, options.dimension)

    def cost(method: str, rows: int) -> tuple[harness.Run, int]:
        out = folder / str(rows)
        found = harness.time_child("decide", [method, out, str(options.recall)], cores, folder / "child")
        return found, json.loads((out / f"{method}.json").read_text())

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("method", "rows", "s", "rows/s", "MiB", "bytes", "files"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for method in methods:
        least, _ = cost(method, SHARD_ROWS)
        for rows in sizes:
            run, files = cost(method, rows)
            mapped = 2 * options.dimension * (rows - SHARD_ROWS) if method == "features" else 0
            size = ((run.peak_mib - least.peak_mib) * 2**20 - mapped) / (rows - SHARD_ROWS)
            numbers = f"{rows:,}", f"{run.wall:.1f}", f"{rows / run.wall:,.0f}", f"{run.peak_mib:,.0f}"
            table.add_row(method, *numbers, f"{size:.0f}", str(files))
    harness.console.print(table)


def main() -> int:
    parser = harness.new_parser(__doc__)
    parser.add_argument("--rows", default="1000000", metavar="N,…", help="default: 1000000")
    parser.add_argument("--methods", default="thresholds,captions", metavar="NAME,…", help=", ".join(recipes(1)))
    parser.add_argument("--dimension", type=int, default=16, help="numbers of a feature (default: 16)")
    parser.add_argument("--recall", type=float, default=0.9, help="of the search in features (default: 0.9)")
    options = parser.parse_args()
    if options.one:
        time_decision(options.one[0], Path(options.one[1]), float(options.one[2]))
        return 0
    return harness.main(compare, options)


if __name__ == "__main__":
    sys.exit(main())
