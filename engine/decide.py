"""DECIDE: over the whole run, columns only. Scores and a recipe in, verdicts and a funnel out; seconds.

Walk the criteria in order. A score criterion drops the rows whose score lies outside; a redundancy criterion
looks at the rows that are left, and of every set of near-duplicates one stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.criteria import FEATURES, Redundancy
from engine.dedup.groups import group_rows
from engine.dedup.neighbours import edges
from engine.dedup.representatives import nearest_to_centroid
from engine.errors import DanqingError
from engine.files import commit, write_json
from engine.funnel import Funnel
from engine.recipe import Recipe
from engine.run import Run, log


@dataclass
class Scores:
    """The columns of all shards, one after the other.

    `columns`: float64, NaN where there is no score. `feature_row`: global row in `features`, -1 without.
    """

    uid: np.ndarray
    error: np.ndarray
    gated_at: np.ndarray
    feature_row: np.ndarray
    features: np.ndarray
    columns: dict[str, np.ndarray]
    shard_rows: list[int]


@dataclass
class Verdicts:
    """Per row: `dropped_by` (position of the criterion, -1 = kept), its set, and who was kept instead (a row)."""

    dropped_by: np.ndarray
    group: np.ndarray
    kept_instead: np.ndarray


def decide(run: Run, recipe: Recipe) -> Funnel:
    """Writes verdicts/NNNNN.parquet for every shard, then funnel.json; does nothing if they are already so.

    Raises:
        DanqingError: shards without scores, or a recipe that asks for scores which were never computed.
    """
    funnel_file = run.folder / "funnel.json"
    if run.manifest.get("decided") == _decision(run, recipe) and funnel_file.exists():
        return Funnel.read(funnel_file)
    missing = run.unscored()
    if missing:
        raise DanqingError(
            f"{run.folder}: {len(missing)} shards have no scores yet (first: {missing[0].name}); finish `danqing score`"
        )
    scores = load(run, recipe)
    verdicts = walk(scores, recipe)
    for phase in ("decided", "written"):
        run.manifest.pop(phase, None)  # until the last file is in, the run has no verdicts
    run.save()
    _write(run, recipe, scores, verdicts)
    funnel = Funnel.count(recipe, verdicts.dropped_by)
    write_json(funnel_file, funnel.to_dict())
    run.manifest["decided"] = _decision(run, recipe)
    run.save()
    log.info("decided with recipe %s (%s): %d of %d kept", recipe.name, recipe.hash, funnel.kept, funnel.collected)
    return funnel


def _decision(run: Run, recipe: Recipe) -> dict[str, object]:
    return {"recipe": recipe.to_dict(), "recipe_hash": recipe.hash, "shards": len(run.shards)}


def load(run: Run, recipe: Recipe) -> Scores:
    """Reads the columns that the recipe's criteria name, and maps the features."""
    names = [c for c in dict.fromkeys(criterion.column for criterion in recipe.criteria) if c != FEATURES]
    tables, blocks = [], []
    offset = 0
    for shard in run.shards:
        path = run.scores(shard.number)
        known = pq.read_schema(path).names
        absent = [name for name in names if name not in known]
        if absent:
            raise DanqingError(f"{path}: the run has no column {absent[0]!r}; score again with a recipe that names it")
        table = pq.read_table(path, columns=["uid", "error", "gated_at", "feature_row", *names])
        rows = table["feature_row"].to_numpy()
        tables.append(table.set_column(3, "feature_row", pa.array(np.where(rows >= 0, rows + offset, -1), pa.int64())))
        block = np.load(run.features(shard.number), mmap_mode="r")
        if len(block):
            blocks.append(block)
            offset += len(block)
    table = pa.concat_tables(tables)
    return Scores(
        uid=table["uid"].to_numpy(),
        error=table["error"].is_valid().to_numpy(),
        gated_at=table["gated_at"].to_numpy(),
        feature_row=table["feature_row"].to_numpy(),
        features=np.concatenate(blocks) if blocks else np.empty((0, 0), np.float16),
        columns={name: table[name].cast(pa.float64()).to_numpy() for name in names},
        shard_rows=[len(t) for t in tables],
    )


def walk(scores: Scores, recipe: Recipe) -> Verdicts:
    """Each row kept, or dropped by the first criterion it fails."""
    rows = len(scores.uid)
    verdicts = Verdicts(np.full(rows, -1), np.full(rows, -1), np.full(rows, -1))
    alive = np.ones(rows, bool)
    for position, criterion in enumerate(recipe.criteria):
        if isinstance(criterion, Redundancy):
            _refuse_unscored(scores, alive & (scores.feature_row < 0), criterion.name)
            looked_at = np.flatnonzero(alive)
            features = scores.features[scores.feature_row[looked_at]]
            group = group_rows(len(looked_at), edges(features, criterion.within))
            stays = nearest_to_centroid(features, group)
            sizes = np.bincount(group, minlength=len(group))
            in_set = sizes[group] > 1
            verdicts.group[looked_at[in_set]] = looked_at[group[in_set]]
            falls = stays != np.arange(len(stays))
            verdicts.kept_instead[looked_at[falls]] = looked_at[stays[falls]]
            holds = np.zeros(rows, bool)
            holds[looked_at[~falls]] = True
        else:
            values = scores.columns[criterion.column]
            _refuse_unscored(scores, alive & np.isnan(values), criterion.name)
            holds = criterion.interval.holds(values)
        verdicts.dropped_by[alive & ~holds] = position
        alive &= holds
    return verdicts


def _refuse_unscored(scores: Scores, missing: np.ndarray, criterion: str) -> None:
    """A row without a score fails its criterion only if it has an error; if a gate kept it from being scored, the
    recipe in hand is looser than the one it was scored with, and any verdict would be a guess."""
    gated = missing & ~scores.error
    if gated.any():
        stage = next(iter(scores.gated_at[gated]), None)
        raise DanqingError(
            f"{int(gated.sum())} pairs have no score for {criterion!r}: the recipe they were scored with dropped them "
            f"before the stage {stage!r}. Score again with this recipe, or once with --score-everything to study "
            "thresholds freely."
        )


def _write(run: Run, recipe: Recipe, scores: Scores, verdicts: Verdicts) -> None:
    names = np.array([criterion.name for criterion in recipe.criteria] + [None], object)
    _, group = np.unique(verdicts.group, return_inverse=True)  # sets numbered 0, 1, …; -1 for rows that are alone
    group = group - 1 if (verdicts.group < 0).any() else group
    start = 0
    for shard, rows in zip(run.shards, scores.shard_rows, strict=True):
        part = slice(start, start + rows)
        start += rows
        instead = verdicts.kept_instead[part]
        identity = pq.read_table(run.scores(shard.number), columns=["shard", "row", "key", "uid"])
        table = (
            identity.append_column("keep", pa.array(verdicts.dropped_by[part] < 0))
            .append_column("dropped_by", pa.array(names[verdicts.dropped_by[part]], pa.string()))
            .append_column("group", pa.array(group[part], pa.int64()))
            .append_column("kept_instead", pa.array(np.where(instead >= 0, scores.uid[instead], None), pa.string()))
        )
        with commit(run.verdicts(shard.number)) as file:
            pq.write_table(table, file)
