"""DECIDE: from a run's scores and a recipe to verdicts and a funnel, over columns only.

Criteria are applied in the recipe's order. Each judges the rows that are left (`engine.recipe.criteria`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
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
from danqing.engine.core.storage import remove_tree
from danqing.engine.decide.cluster import NeighbourCluster
from danqing.engine.decide.columns import Columns
from danqing.engine.decide.contents import is_complete, scores_hash
from danqing.engine.decide.dedup.index import AUTO
from danqing.engine.decide.funnel import Funnel
from danqing.engine.decide.models import check_models
from danqing.engine.decide.patterns import check_patterns
from danqing.engine.decide.reference import check_references
from danqing.engine.decide.scores import Scores, read_scores
from danqing.engine.decide.tasks import FOLDER, ListedError, TaskList, TaskSearches
from danqing.engine.decide.uids import texts_of
from danqing.engine.recipe.outcome import Outcome, Recall
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import MERGED, Run
from danqing.engine.run.tables import scores_table

SAVED = "saved.parquet"
"""Name of the file in a run's folder that lists the groups which a surviving row represents."""


@dataclass
class Verdicts:
    """The decision about each row.

    Attributes:
        dropped_by: int16 (rows,), position of the criterion, -1 for kept rows.
        found: what the criteria have found out about groups, in their order, without the rows that passed. Where two
            name one row, the later one counts.
        recall: position → measured recall of a criterion whose search may miss pairs.
        indexes: position → index of a criterion that searched the features.
        saved: position → number of groups of a criterion that a surviving row represents (`Outcome.saved`).
    """

    dropped_by: np.ndarray
    found: list[Outcome] = field(default_factory=list)
    recall: dict[int, Recall] = field(default_factory=dict)
    indexes: dict[int, str] = field(default_factory=dict)
    saved: dict[int, int] = field(default_factory=dict)

    @classmethod
    def none(cls, rows: int) -> Verdicts:
        """Every row kept, before the first criterion."""
        return cls(np.full(rows, -1, np.int16))

    def enter(self, position: int, alive: np.ndarray, outcome: Outcome) -> None:
        """Enters the outcome of the criterion at a position.

        Args:
            alive: boolean (rows,), the rows that earlier criteria left; updated to those that are left now.
        """
        left = np.zeros_like(alive)
        left[outcome.passed] = True
        self.dropped_by[alive & ~left] = position
        alive[:] = left
        if len(outcome.members) or len(outcome.duplicates):
            self.found.append(replace(outcome, passed=outcome.passed[:0].copy()))  # a view would keep all of them
        if outcome.recall:
            self.recall[position] = outcome.recall
        if outcome.index:
            self.indexes[position] = outcome.index
        if outcome.saved is not None:
            self.saved[position] = len(outcome.saved)


def decide(
    run: Run,
    recipe: Recipe,
    device: Device,
    progress: Progress | None = None,
    force: bool = False,
    neighbours: str = AUTO,
    cluster: NeighbourCluster | None = None,
) -> Funnel:
    """Writes verdicts/NNNNN.parquet for every shard, then funnel.json; does nothing if they are up to date.

    Args:
        run: its shards have scores.
        recipe: the thresholds to apply; they may be stricter than those the run was scored with.
        device: searches for near-duplicates.
        progress: counts comparisons.
        force: decide though the recipe names other models than those that scored.
        neighbours: index of the searches for near rows, or `auto` (`choose_index`).
        cluster: searches for near rows; None: `device` does.

    Returns:
        The funnel.

    Raises:
        DanqingError: shards without scores, a recipe that needs scores that were not computed, or other models.
    """
    recipe, decision = _decision(run, recipe, force)
    before = run.manifest.get("decided", {})
    if before == before | decision and is_complete(run):
        return Funnel.of(run)
    for line in _changes(before, decision):
        log.info("%s", line)
        if progress:
            progress.say(line)
    wanted, elsewhere = (cluster.how.tasks, partial(cluster.search, run)) if cluster else (0, None)
    searches = TaskSearches(run, recipe.hash, decision["scores"], wanted, elsewhere)
    scores = replace(read_scores(run, recipe), neighbours=neighbours, searches=searches)
    verdicts = walk(scores, recipe, device, progress)
    funnel = record(run, recipe, scores, verdicts, decision)
    if cluster:
        remove_tree(run.folder / FOLDER)  # a list would be in the way of the next decision
    log.info("decided with recipe %s (%s): %d of %d kept", recipe.name, recipe.hash, funnel.kept, funnel.collected)
    return funnel


def list_tasks(
    run: Run,
    recipe: Recipe,
    count: int,
    device: Device,
    progress: Progress | None = None,
    force: bool = False,
    neighbours: str = AUTO,
) -> TaskList | None:
    """Lists the tasks of the first search for near rows that is not done (`engine.decide.tasks`).

    Args:
        count: least number of tasks.

    For the other arguments see `decide`.

    Returns:
        The tasks; None if all searches are done, or there are none.

    Raises:
        DanqingError: as `decide`; or the search is not exact.
    """
    recipe, decision = _decision(run, recipe, force)
    searches = TaskSearches(run, recipe.hash, decision["scores"], count)
    scores = replace(read_scores(run, recipe), neighbours=neighbours, searches=searches)
    try:
        walk(scores, recipe, device, progress)
    except ListedError as listed:
        return listed.tasks
    return None


def _decision(run: Run, recipe: Recipe, force: bool) -> tuple[Recipe, dict[str, Any]]:
    """Checks that a recipe can be applied to a run.

    Returns:
        The recipe, with the models that scored; and what its verdicts depend on.
    """
    if MERGED in run.manifest:
        raise DanqingError(f"{run.folder} is a merge: decide the runs that it was made from, then merge them again")
    run.check_scored()
    check_models(run, recipe, force)
    check_patterns(run, recipe)
    recipe = replace(recipe, models=run.recipe.models)
    decision = decision_of(run, recipe)
    if references := check_references(run, recipe):
        decision["references"] = references
    return recipe, decision


def decision_of(run: Run, recipe: Recipe) -> dict[str, Any]:
    """The inputs of the verdicts: recipe and scores."""
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
            lines.append(f"{folder} was scored or decided again since the last decision; deciding again")
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
    verdicts, alive = Verdicts.none(len(scores.error)), np.ones(len(scores.error), bool)
    for position, criterion in enumerate(recipe.criteria):
        seen = replace(scores, later=recipe.criteria[position + 1 :])
        verdicts.enter(position, alive, seen.judge(criterion, alive, device, progress))
    return verdicts


def record(run: Run, recipe: Recipe, scores: Scores, verdicts: Verdicts, decision: dict[str, Any]) -> Funnel:
    """Writes the verdicts and the funnel, then notes the decision in the manifest."""
    for phase in ("decided", "written", "neighbours"):
        run.manifest.pop(phase, None)  # the run has no verdicts until the last file is written
    run.save()
    numbers = GroupNumbers(verdicts)
    _write(run, recipe, scores.columns, verdicts, numbers)
    _write_saved(run, scores.columns, verdicts, numbers)
    funnel = Funnel.count(recipe, verdicts.dropped_by, verdicts.recall, verdicts.saved)
    write_json(run.folder / "funnel.json", funnel.to_dict())
    if verdicts.indexes:  # not part of the decision: verdicts do not depend on the index
        names = {recipe.criteria[position].name: index for position, index in verdicts.indexes.items()}
        run.manifest["neighbours"] = names
    run.note("decided", **decision)
    return funnel


class GroupNumbers:
    """Numbers of the groups of all criteria: 0, 1, … in the order of the criteria, then of the groups' first rows."""

    def __init__(self, verdicts: Verdicts) -> None:
        later = np.zeros(len(verdicts.dropped_by), bool)
        self._groups: list[np.ndarray] = []
        for outcome in reversed(verdicts.found):  # a group whose members are all in later groups has no number
            self._groups.insert(0, np.unique(outcome.group[~later[outcome.members]]))
            later[outcome.members] = True
        self._firsts = np.cumsum([0, *map(len, self._groups)])

    def of(self, place: int, groups: np.ndarray) -> np.ndarray:
        """The numbers of groups, int64 (n,), that the outcome at a place of `Verdicts.found` names."""
        return self._firsts[place] + np.searchsorted(self._groups[place], groups)


def _write(run: Run, recipe: Recipe, columns: Columns, verdicts: Verdicts, numbers: GroupNumbers) -> None:
    """Writes the verdicts of every shard."""
    rows = Decided(recipe, columns, verdicts, numbers)
    start = 0
    for shard in run.shards:
        table = scores_table(run, shard.number, ["shard", "row", "key", "uid"])
        values = rows.values(start, len(table))
        for column in VERDICTS:
            # NaN becomes null
            table = table.append_column(column.name, pa.array(values[column.name], column.type, from_pandas=True))
        with commit(run.verdicts_path(shard.number)) as file:
            pq.write_table(table, file)
        start += len(table)


class Decided:
    """The columns of verdicts, a shard at a time."""

    def __init__(self, recipe: Recipe, columns: Columns, verdicts: Verdicts, numbers: GroupNumbers) -> None:
        self._verdicts, self._numbers = verdicts, numbers
        self._names = np.array([criterion.name for criterion in recipe.criteria] + [None], object)
        instead = [out.kept_instead for out in verdicts.found if out.kept_instead.ndim == 1]
        self._kept = np.unique(np.concatenate([np.empty(0, np.int32), *instead]))
        self._uids = columns.uids(self._kept)

    def values(self, start: int, rows: int) -> dict[str, Any]:
        """Column → its values in `rows` rows from `start` on."""
        dropped_by = self._verdicts.dropped_by[start : start + rows]
        group, distance, kept_instead = np.full(rows, -1), np.full(rows, np.nan), np.zeros((rows, 2), np.uint64)
        for place, out in enumerate(self._verdicts.found):
            part = _within(out.members, start, rows)
            group[out.members[part] - start] = self._numbers.of(place, out.group[part])
            part = _within(out.duplicates, start, rows)
            duplicates, other = out.duplicates[part] - start, out.kept_instead[part]
            distance[duplicates] = out.distance[part]
            kept_instead[duplicates] = other if other.ndim == 2 else self._uids[np.searchsorted(self._kept, other)]
        return {
            "keep": dropped_by < 0,
            "dropped_by": self._names[dropped_by],
            "group": group,
            "kept_instead": _texts(kept_instead, ~np.isnan(distance)),
            "distance": distance,
        }


def _within(rows: np.ndarray, start: int, count: int) -> slice:
    """The slice of ascending rows that holds the `count` rows from `start` on."""
    borders = np.array([start, start + count], rows.dtype)  # of another type, `rows` would be copied
    return slice(*np.searchsorted(rows, borders).tolist())


def _texts(uids: np.ndarray, known: np.ndarray) -> list[str | None]:
    """Uids as text, None where `known`, boolean (rows,), is false."""
    out: list[str | None] = [None] * len(uids)
    rows = np.flatnonzero(known)
    for row, text in zip(rows.tolist(), texts_of(uids[rows]), strict=True):
        out[row] = text
    return out


def _write_saved(run: Run, columns: Columns, verdicts: Verdicts, numbers: GroupNumbers) -> None:
    """Writes saved.parquet: the groups that a surviving row represents, and the uid of the row that it replaced."""
    path, tables = run.folder / SAVED, []
    for place, out in enumerate(verdicts.found):
        if out.saved is None or not len(out.saved):
            continue
        chosen, otherwise = out.saved[np.argsort(out.saved[:, 1], kind="stable")].T
        group = numbers.of(place, out.group[np.searchsorted(out.members, chosen)])
        uids = pa.array(texts_of(columns.uids(otherwise)), pa.string())
        tables.append(pa.table({"group": group, "uid": uids}).sort_by("group"))
    if not tables:
        path.unlink(missing_ok=True)
        return
    with commit(path) as file:
        pq.write_table(pa.concat_tables(tables), file)
