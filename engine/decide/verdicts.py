"""DECIDE: from a run's scores and a recipe to verdicts and a funnel, over columns only.

Criteria are applied in the recipe's order. Each judges the rows that are left (`engine.recipe.criteria`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.columns import VERDICTS
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit, write_json
from danqing.engine.core.logs import log
from danqing.engine.core.progress import Progress
from danqing.engine.decide.contents import is_complete, scores_hash
from danqing.engine.decide.dedup.index import AUTO
from danqing.engine.decide.funnel import Funnel
from danqing.engine.decide.models import check_models
from danqing.engine.decide.patterns import check_patterns
from danqing.engine.decide.reference import check_references
from danqing.engine.decide.scores import Scores, read_scores
from danqing.engine.decide.uids import texts_of
from danqing.engine.recipe.outcome import Outcome, Recall
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import MERGED, Run
from danqing.engine.run.tables import scores_table


@dataclass
class Verdicts:
    """What was decided about each row.

    Attributes:
        dropped_by: int16 (rows,), position of the criterion, -1 for kept rows.
        group: int64 (rows,), number of the row's near-duplicate group, -1 without one. Each criterion has its own
            numbers.
        kept_instead: uint64 (rows, 2), uid of the row that was kept instead, where there is a distance.
        distance: float64 (rows,), distance to that row, or NaN.
        recall: position → measured recall of a criterion whose search may miss pairs.
        indexes: position → index of a criterion that searched the features.
    """

    dropped_by: np.ndarray
    group: np.ndarray
    kept_instead: np.ndarray
    distance: np.ndarray
    recall: dict[int, Recall] = field(default_factory=dict)
    indexes: dict[int, str] = field(default_factory=dict)

    @classmethod
    def none(cls, rows: int) -> Verdicts:
        """Every row kept, before the first criterion."""
        dropped_by, group = np.full(rows, -1, np.int16), np.full(rows, -1)
        return cls(dropped_by, group, np.zeros((rows, 2), np.uint64), np.full(rows, np.nan))

    def enter(self, position: int, alive: np.ndarray, outcome: Outcome) -> None:
        """Enters the outcome of the criterion at a position.

        Args:
            alive: boolean (rows,), the rows that earlier criteria left; updated to those that are left now.
        """
        left = np.zeros_like(alive)
        left[outcome.passed] = True
        self.dropped_by[alive & ~left] = position
        self.group[outcome.members] = outcome.group + position * len(self.group)
        self.kept_instead[outcome.duplicates] = outcome.kept_instead
        self.distance[outcome.duplicates] = outcome.distance
        if outcome.recall:
            self.recall[position] = outcome.recall
        if outcome.index:
            self.indexes[position] = outcome.index
        alive[:] = left


def decide(
    run: Run,
    recipe: Recipe,
    device: Device,
    progress: Progress | None = None,
    force: bool = False,
    neighbours: str = AUTO,
) -> Funnel:
    """Writes verdicts/NNNNN.parquet for every shard, then funnel.json; does nothing if they are up to date.

    Args:
        run: its shards have scores.
        recipe: the thresholds to apply; they may be stricter than those the run was scored with.
        device: searches for near-duplicates.
        progress: counts comparisons.
        force: decide though the recipe names other models than those that scored.
        neighbours: index of the searches for near rows, or `auto` (`choose_index`).

    Returns:
        The funnel.

    Raises:
        DanqingError: shards without scores, a recipe that needs scores that were not computed, or other models.
    """
    if MERGED in run.manifest:
        raise DanqingError(f"{run.folder} is a merge: decide the runs that it was made from, then merge them again")
    run.check_scored()
    check_models(run, recipe, force)
    check_patterns(run, recipe)
    recipe = replace(recipe, models=run.recipe.models)  # those that scored
    decision = decision_of(run, recipe)
    if references := check_references(run, recipe):
        decision["references"] = references
    before = run.manifest.get("decided", {})
    if before == before | decision and is_complete(run):
        return Funnel.of(run)
    for line in _changes(before, decision):
        log.info("%s", line)
        if progress:
            progress.say(line)
    scores = replace(read_scores(run, recipe), neighbours=neighbours)
    verdicts = walk(scores, recipe, device, progress)
    funnel = record(run, recipe, scores, verdicts, decision)
    log.info("decided with recipe %s (%s): %d of %d kept", recipe.name, recipe.hash, funnel.kept, funnel.collected)
    return funnel


def decision_of(run: Run, recipe: Recipe) -> dict[str, Any]:
    """What verdicts depend on: the recipe and the scores."""
    return {
        "recipe": recipe.to_dict(),
        "recipe_hash": recipe.hash,
        "shards": len(run.shards),
        "scores": scores_hash(run),
    }


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names what changed on disk since an earlier decision."""
    lines = []
    if before and before.get("scores") != now["scores"]:
        lines.append("the scores changed since the last decision; deciding again")
    compared = before.get("references", {})
    for folder, state in now.get("references", {}).items():
        if folder in compared and compared[folder] != state:
            lines.append(f"{folder} was scored or decided anew since the last decision; deciding again")
    return lines


def walk(scores: Scores, recipe: Recipe, device: Device, progress: Progress | None = None) -> Verdicts:
    """Applies the criteria in order: each row is kept, or dropped by the first criterion that it fails.

    Args:
        scores: the columns that the recipe's criteria name.
        recipe: the criteria.
        device: searches for near-duplicates.
        progress: receives the number of comparisons.

    Returns:
        The verdict of every row, in the order of `scores`.

    Raises:
        DanqingError: rows without an error lack a score, since they were scored with a stricter recipe.
    """
    rows = len(scores.error)
    verdicts, alive = Verdicts.none(rows), np.ones(rows, bool)
    for position, criterion in enumerate(recipe.criteria):
        seen = replace(scores, later=recipe.criteria[position + 1 :])
        verdicts.enter(position, alive, seen.judge(criterion, alive, device, progress))
    return verdicts


def record(run: Run, recipe: Recipe, scores: Scores, verdicts: Verdicts, decision: dict[str, Any]) -> Funnel:
    """Writes the verdicts and the funnel, then notes the decision in the manifest."""
    for phase in ("decided", "written", "neighbours"):
        run.manifest.pop(phase, None)  # the run has no verdicts until the last file is written
    run.save()
    _write(run, recipe, scores, verdicts)
    funnel = Funnel.count(recipe, verdicts.dropped_by, verdicts.recall)
    write_json(run.folder / "funnel.json", funnel.to_dict())
    if verdicts.indexes:  # not part of the decision: verdicts do not depend on the index
        names = {recipe.criteria[position].name: index for position, index in verdicts.indexes.items()}
        run.manifest["neighbours"] = names
    run.note("decided", **decision)
    return funnel


def _write(run: Run, recipe: Recipe, scores: Scores, verdicts: Verdicts) -> None:
    names = np.array([criterion.name for criterion in recipe.criteria] + [None], object)
    _, group = np.unique(verdicts.group, return_inverse=True)  # groups are numbered 0, 1, …; -1 for rows without one
    group = group - 1 if (verdicts.group < 0).any() else group
    start = 0
    for shard, rows in zip(run.shards, scores.shard_rows, strict=True):
        part = slice(start, start + rows)
        start += rows
        table = scores_table(run, shard.number, ["shard", "row", "key", "uid"])
        values = {
            "keep": verdicts.dropped_by[part] < 0,
            "dropped_by": names[verdicts.dropped_by[part]],
            "group": group[part],
            "kept_instead": _kept_instead(verdicts, part),
            "distance": verdicts.distance[part],
        }
        for column in VERDICTS:
            # NaN becomes null
            table = table.append_column(column.name, pa.array(values[column.name], column.type, from_pandas=True))
        with commit(run.verdicts_path(shard.number)) as file:
            pq.write_table(table, file)


def _kept_instead(verdicts: Verdicts, part: slice) -> list[str | None]:
    out: list[str | None] = [None] * len(verdicts.distance[part])
    rows = np.flatnonzero(~np.isnan(verdicts.distance[part]))
    for row, text in zip(rows.tolist(), texts_of(verdicts.kept_instead[part][rows]), strict=True):
        out[row] = text
    return out
