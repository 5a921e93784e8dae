"""Scored runs made of tables, without pictures and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.columns import COLUMNS
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run
from danqing.trt_models.model_set import ModelSet


def on_circle(*degrees: float) -> np.ndarray:
    """Features, float16 (rows, 2); rows a degree apart have a cosine distance of 0.00015."""
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float16)


def make_run(
    folder: Path,
    recipe: Recipe,
    features: np.ndarray,
    scores: Mapping[str, Sequence[Any]],
    shard_rows: Sequence[int] = (),
    first_uid: int = 1,
) -> Run:
    """Writes a scored run whose rows all have features.

    Args:
        folder: of the run.
        recipe: the recipe it was scored with.
        features: float16 (rows, dimension).
        scores: column → values; `error` and `gated_at` are null if they are not given.
        shard_rows: rows of each shard; default: one shard.
        first_uid: number of the first row's uid.
    """
    sizes = list(shard_rows) or [len(features)]
    shards = [
        {"number": number, "name": f"{number:05d}", "path": f"{number:05d}.tar", "bytes": 1, "first": 0, "rows": None}
        for number in range(len(sizes))
    ]
    models = {role: ModelSet({role: name}).hashes()[role] for role, name in recipe.models.items()}
    run = Run.create(folder, recipe, {"shards": shards, "layout": {}, "models": models})
    start = 0
    for number, rows in enumerate(sizes):
        part = slice(start, start + rows)
        uids = [f"{first_uid + row:032x}" for row in range(start, start + rows)]
        table: dict[str, Any] = {
            "shard": [f"{number:05d}"] * rows,
            "row": pa.array(range(rows), pa.int32()),
            "key": [f"{folder.name}{row}" for row in range(start, start + rows)],
            "input_key": pa.nulls(rows, pa.string()),
            "uid": uids,
            "feature_row": pa.array(range(rows), pa.int32()),
        }
        given = {"error": [None] * len(features), "gated_at": [None] * len(features)} | dict(scores)
        for name, values in given.items():
            table[name] = pa.array(values[part], COLUMNS[name].type)
        for path in (run.scores_path(number), run.features_path(number)):
            path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(table), run.scores_path(number))
        np.save(run.features_path(number), features[part])
        start += rows
    return run


def verdicts_of(run: Run) -> list[dict[str, Any]]:
    """The rows of all verdicts, in order."""
    return [row for shard in run.shards for row in pq.read_table(run.verdicts_path(shard.number)).to_pylist()]
