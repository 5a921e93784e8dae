"""MERGE: several decided runs as one: redundancy once more, among the rows that survived in each.

The merged run is a folder like any other, whose scores and features are links to those of its runs; so writing,
explaining and reporting work as ever. Of the search is kept which rows were chained to which (chains.npy), so that
a run that comes later is compared with all rows, and those before it not with each other again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine import __version__
from engine.criteria import FEATURES, Redundancy
from engine.decide import MERGED, Scores, Verdicts, load, sets_among, write_verdicts
from engine.dedup import sets
from engine.dedup.features import Features
from engine.device import Device
from engine.errors import DanqingError
from engine.files import commit, write_json
from engine.funnel import Funnel
from engine.progress import Progress
from engine.recipe import Recipe, recipe_from_dict
from engine.run import Run, log

NAME, STEP = "cross_batch_redundancy", "cross-batch redundancy"


def merge(
    folders: Sequence[Path], output: Path, device: Device, progress: Progress | None = None
) -> tuple[Run, Funnel]:
    """Makes OUT the run of all the runs' rows, with verdicts and funnel; does nothing if it is already that.

    Raises:
        DanqingError: runs without verdicts, or by different recipes, models or layouts; says which.
    """
    runs = [Run.open(folder) for folder in folders]
    recipe = common_recipe(runs)
    merged = [{"folder": str(run.folder.resolve()), "decided": _hash(run.manifest["decided"])} for run in runs]
    run, before = _open(output, runs, recipe, merged)
    if run.manifest.get("decided") and before == merged:
        return run, Funnel.read(output / "funnel.json")
    for phase in ("decided", "written"):
        run.manifest.pop(phase, None)  # until the last file is in, the run has no verdicts
    run.save()
    criterion = recipe.criteria[-1]
    assert isinstance(criterion, Redundancy)
    scores = load(run, replace(recipe, criteria=(criterion,)))
    verdicts = _verdicts_of(runs, recipe, scores)
    last = len(recipe.criteria) - 1
    rows = np.flatnonzero(((verdicts.dropped_by < 0) | (verdicts.dropped_by == last)) & (scores.feature_row >= 0))
    again = verdicts.dropped_by == last
    verdicts.group[again], verdicts.kept_instead[again], verdicts.distance[again] = -1, None, np.nan
    known = output / "chains.npy"
    earlier = np.load(known) if before and before == merged[: len(before)] and known.exists() else None
    known.unlink(missing_ok=True)
    features = Features(device, scores.features, scores.feature_row[rows])
    chains = sets.chains(features, criterion.within, progress, earlier)
    verdicts.dropped_by[rows] = last
    stay = verdicts.enter_sets(scores, rows, *sets_among(scores, criterion, rows, device, progress, chains))
    verdicts.dropped_by[stay] = -1
    write_verdicts(run, recipe, scores, verdicts)
    with commit(known) as file:
        np.save(file, chains)
    funnel = Funnel.count(recipe, verdicts.dropped_by)
    write_json(output / "funnel.json", funnel.to_dict())
    run.manifest[MERGED] = merged
    run.note("decided", recipe=recipe.to_dict(), recipe_hash=recipe.hash, shards=len(run.shards), runs=_hash(merged))
    compared = len(rows) - (0 if earlier is None else len(earlier))
    log.info("merged %d runs: %d of %d rows compared anew, %d kept", len(runs), compared, len(rows), funnel.kept)
    return run, funnel


def common_recipe(runs: Sequence[Run]) -> Recipe:
    """The recipe all runs were decided with, its last criterion a redundancy of features (added if it has none)."""
    first = runs[0]
    for run in runs:
        if "decided" not in run.manifest:
            raise DanqingError(f"{run.folder}: no verdicts yet; run `danqing decide {run.folder}` first")
        differences = _recipe(run).differences(_recipe(first))
        for part in ("models", "layout"):
            if run.manifest[part] != first.manifest[part]:
                differences.append(f"{part}: {first.manifest[part]} there, {run.manifest[part]} here")
        if differences:
            listed = "\n  ".join(differences)
            raise DanqingError(f"{run.folder} (here) was made otherwise than {first.folder} (there):\n  {listed}")
    recipe = _recipe(first)
    sought = [c for c in recipe.criteria if isinstance(c, Redundancy) and c.column == FEATURES]
    if not sought:
        raise DanqingError(
            f"recipe {recipe.name} has no redundancy criterion of features; there is nothing to merge by"
        )
    if recipe.criteria[-1] is not sought[-1]:
        recipe = replace(recipe, criteria=(*recipe.criteria, replace(sought[-1], name=NAME, step=STEP)))
    return recipe


def _recipe(run: Run) -> Recipe:
    return recipe_from_dict(run.manifest["decided"]["recipe"], str(run.folder / "run.json"))


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _open(
    output: Path, runs: Sequence[Run], recipe: Recipe, merged: list[dict[str, str]]
) -> tuple[Run, list[dict[str, str]]]:
    """The merged run, all its shards linked, and which runs its chains were found among."""
    before: list[dict[str, str]] = []
    if (output / "run.json").exists():
        there = Run.open(output)
        if MERGED not in there.manifest:
            raise DanqingError(f"{output} holds a run that is no merge; choose another --output")
        before = there.manifest[MERGED] if there.manifest.get("recipe_hash") == recipe.hash else []
        if before == merged:
            return there, before
    elif output.exists() and any(output.iterdir()):
        raise DanqingError(f"{output}: not empty and not a run (no run.json); choose another folder")
    shards = [(run, shard) for run in runs for shard in run.shards]
    listed = [
        asdict(replace(shard, number=number)) | {"path": str(shard.path)} for number, (_, shard) in enumerate(shards)
    ]
    manifest = {
        "engine": __version__,
        "recipe": recipe.to_dict(),
        "recipe_hash": recipe.hash,
        "shards": listed,
        **{part: runs[0].manifest[part] for part in ("layout", "models", "versions")},
        MERGED: before,
        "times": {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    }
    run = Run(output, manifest)
    for number, (part, shard) in enumerate(shards):
        for link, file in (
            (run.scores(number), part.scores(shard.number)),
            (run.features(number), part.features(shard.number)),
        ):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(file.resolve())
    run.save()
    return run, before


def _verdicts_of(runs: Sequence[Run], recipe: Recipe, scores: Scores) -> Verdicts:
    """What the runs decided, one after the other; their sets keep apart."""
    tables, rows = [], len(scores.uid)
    for run in runs:
        for shard in run.shards:
            table = pq.read_table(run.verdicts(shard.number))
            group = table["group"].to_numpy()
            # A set's number becomes one that no other run's set can have, nor one that is found now.
            tables.append(
                table.set_column(
                    table.schema.get_field_index("group"), "group", pa.array(np.where(group >= 0, group + rows, -1))
                )
            )
        rows += sum(pq.read_metadata(run.verdicts(shard.number)).num_rows for shard in run.shards)
    table = pa.concat_tables(tables)
    positions = {criterion.name: position for position, criterion in enumerate(recipe.criteria)} | {None: -1}
    return Verdicts(
        dropped_by=np.array([positions[name] for name in table["dropped_by"].to_pylist()], np.int64),
        group=table["group"].to_numpy().copy(),
        kept_instead=table["kept_instead"].to_numpy().copy(),
        distance=table["distance"].to_numpy().copy(),
    )
