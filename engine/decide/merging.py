"""MERGE: joins several decided runs and applies the redundancy criterion to the rows that each run kept.

Criteria that compare captions are applied before it.

The merged run is a run folder whose scores and features are links to those of its runs; it is written, explained and
reported like any other. On object storage, which has no links, they are copies. The components of near rows are stored
(chains.npy): when a run is added later, its rows are compared with all rows, but the earlier rows are not compared with
each other again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from danqing.engine.core.damage import read_damage, write_damage
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit, copy_file
from danqing.engine.core.progress import Progress
from danqing.engine.core.storage import RemotePath, path_of
from danqing.engine.decide.contents import is_complete, merged_state
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.index import AUTO
from danqing.engine.decide.funnel import Funnel
from danqing.engine.decide.scores import NearComponents, Scores, connect_near_rows, outcome_of, read_scores
from danqing.engine.decide.uids import numbers_of
from danqing.engine.decide.verdicts import Verdicts, decision_of, record
from danqing.engine.recipe.criteria import Redundancy
from danqing.engine.recipe.outcome import Outcome, position_type, positions_of
from danqing.engine.recipe.reading import Recipe, recipe_from_dict
from danqing.engine.run.folder import MERGED, Run, is_run
from danqing.engine.run.tables import verdicts_table
from danqing.engine.score.settling import settle

NAME, STEP = "cross_batch_redundancy", "cross-batch redundancy"


def merge(
    folders: Sequence[Path], output: Path, device: Device, progress: Progress | None = None, neighbours: str = AUTO
) -> tuple[Run, Funnel]:
    """Makes the output folder the run of all the runs' rows, with verdicts and funnel, unless it is that already.

    Args:
        folders: the runs, all decided.
        output: the merged run's folder.
        device: searches for near-duplicates.
        progress: counts comparisons.
        neighbours: index of the search for near rows, or `auto` (`choose_index`).

    Returns:
        The merged run, and its funnel.

    Raises:
        DanqingError: a run is given twice, has no verdicts, or another recipe, models or layout; says which.
    """
    runs = [Run.open(folder) for folder in folders]
    _check_distinct(runs, output)
    recipe = common_recipe(runs)
    merged = [merged_state(run) for run in runs]
    run, before = _open(output, runs, recipe, merged)
    write_damage(output, list(dict.fromkeys(entry for part in runs for entry in read_damage(part.folder))))
    if run.manifest.get("decided") and before == merged and is_complete(run):
        return run, Funnel.of(run)
    if progress:
        _say_changes(before, merged, progress)
    criterion = recipe.criteria[-1]
    assert isinstance(criterion, Redundancy)
    captions = {
        position: sought
        for position, sought in enumerate(recipe.criteria)
        if isinstance(sought, Redundancy) and sought.compares_captions
    }
    scores = read_scores(run, replace(recipe, criteria=(*captions.values(), criterion)))
    scores.neighbours = neighbours
    verdicts, alive = _reach_last(runs, recipe, scores)
    for position, sought in captions.items():
        verdicts.enter(position, alive, scores.judge(sought, alive, device, progress))
    rows = positions_of(alive)
    earlier = _chains(output, rows) if before and before == merged[: len(before)] else None
    features = Features(device, *scores.columns.features(rows))
    components = connect_near_rows(features, criterion, progress, earlier, neighbours)
    _store(run, rows, components, merged)
    found = outcome_of(rows, rows, scores.represent(criterion, rows, components, progress))
    outcome = replace(found, recall=components.recall, index=components.index)
    verdicts.enter(len(recipe.criteria) - 1, alive, outcome)
    return run, record(run, recipe, scores, verdicts, decision_of(run, recipe))


def _say_changes(before: Sequence[Mapping[str, str]], merged: Sequence[Mapping[str, str]], progress: Progress) -> None:
    """Names the runs that changed since they were merged."""
    there = {part["folder"]: part for part in before}
    for part in merged:
        if there.get(part["folder"], part) != part:
            progress.say(f"{part['folder']} was scored or decided again since it was merged; comparing all rows again")


def _reach_last(runs: Sequence[Run], recipe: Recipe, scores: Scores) -> tuple[Verdicts, np.ndarray]:
    """The verdicts of the runs before the last criterion; and boolean (rows,), the rows that reach it."""
    last = len(recipe.criteria) - 1
    verdicts = _verdicts_of(runs, recipe, len(scores.error), last)
    alive = ((verdicts.dropped_by < 0) | (verdicts.dropped_by == last)) & scores.can_judge(recipe.criteria[last])
    verdicts.dropped_by[alive] = -1
    return verdicts, alive


def _store(run: Run, rows: np.ndarray, components: NearComponents, merged: Sequence[Mapping[str, str]]) -> None:
    """Writes the components of the rows that reached the last criterion, then the states of the runs they are of."""
    with commit(run.folder / "chains.npy") as file:
        np.save(file, np.stack([rows, components.first], dtype=np.int64))
    own = run.folder / "run.json"
    run.manifest[MERGED] = [
        {**part, "folder": str(_link_target(own, path_of(part["folder"]), run.folder))} for part in merged
    ]
    run.save()


def _check_distinct(runs: Sequence[Run], output: Path) -> None:
    """Raises DanqingError if the rows of a run would be counted twice, or if a run would be replaced by the merge."""
    seen: set[Path] = set()
    for run in runs:
        if run.folder.resolve() == output.resolve():
            raise DanqingError(f"{output}: one of the runs to merge; choose another --output")
        own = [run.folder.resolve(), *(path_of(part["folder"]).resolve() for part in run.parts)]
        for folder in own:
            if folder in seen:
                where = "" if folder == own[0] else f", once as part of the merged run {run.folder}"
                raise DanqingError(f"{folder}: given twice{where}; give each run once")
        seen.update(own)


def common_recipe(runs: Sequence[Run]) -> Recipe:
    """The recipe that all runs were decided with; a last redundancy criterion of features is added if it has none.

    Raises:
        DanqingError: the runs differ in recipe, models or layout, or the recipe does not compare features.
    """
    first = runs[0]
    for run in runs:
        run.check_decided()
        differences = _recipe(run).differences(_recipe(first))
        for part in ("models", "layout"):
            if run.manifest[part] != first.manifest[part]:
                differences.append(f"{part}: {first.manifest[part]} there, {run.manifest[part]} here")
        if differences:
            listed = "\n  ".join(differences)
            raise DanqingError(f"{run.folder} (here) was made differently from {first.folder} (there):\n  {listed}")
    recipe = _recipe(first)
    sought = recipe.near_duplicates
    if not sought:
        raise DanqingError(
            f"recipe {recipe.name} has no redundancy criterion of features, which merging applies; "
            "add one, for example redundancy: {within: 0.1}, and decide the runs again"
        )
    if recipe.criteria[-1] is not sought[-1]:
        recipe = replace(recipe, criteria=(*recipe.criteria, replace(sought[-1], name=NAME, step=STEP)))
    return recipe


def _recipe(run: Run) -> Recipe:
    return recipe_from_dict(run.manifest["decided"]["recipe"], str(run.folder / "run.json"))


def _open(
    output: Path, runs: Sequence[Run], recipe: Recipe, merged: list[dict[str, str]]
) -> tuple[Run, list[dict[str, str]]]:
    """Links the shards of the runs; returns the merged run, and the runs that chains.npy was computed for."""
    before: list[dict[str, str]] = []
    shards = [(run, shard) for run in runs for shard in run.shards]
    if is_run(output):
        there = Run.open(output)
        if MERGED not in there.manifest:
            raise DanqingError(f"{output} holds a run that is not a merge; choose another --output")
        before = there.parts if there.manifest["recipe_hash"] == recipe.hash else []
        if before == merged:
            return there, before
        for left_over in there.shards[len(shards) :]:  # a smaller merge removes the shards of the larger one
            for kind in (Run.scores_path, Run.features_path, Run.verdicts_path):
                kind(there, left_over.number).unlink(missing_ok=True)
    listed = [
        asdict(replace(shard, number=number)) | {"path": str(shard.path)} for number, (_, shard) in enumerate(shards)
    ]
    same = {part: runs[0].manifest[part] for part in ("layout", "models")}
    run = Run.create(output, recipe, {"shards": listed, **same, MERGED: []})  # empty until chains.npy is written
    for number, (part, shard) in enumerate(shards):
        for kind in (Run.scores_path, Run.features_path):
            link = kind(run, number)
            target = kind(part, shard.number).resolve()
            if isinstance(link, RemotePath) or isinstance(target, RemotePath):
                copy_file(target, link)
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(_link_target(link, target, output))
    settle(run)  # writes the scores again, in place of the link, where the runs differ in the fields they carry
    return run, before


def _link_target(link: Path, target: Path, output: Path) -> Path | str:
    """The path that a link or a file holds; relative if the target lies beside or in `output`: both can be moved."""
    if isinstance(target, RemotePath) or isinstance(output, RemotePath):
        return target
    beside = target.is_relative_to(output.resolve().parent)
    return os.path.relpath(target, link.parent.resolve()) if beside else target


def _chains(output: Path, rows: np.ndarray) -> np.ndarray | None:
    """The stored components of the first of some rows, int64 (n,).

    Returns:
        None if the file is missing or damaged, or if other rows were compared, so that all are compared.
    """
    try:
        stored = np.load(output / "chains.npy")
    except (OSError, ValueError, EOFError):
        return None
    known = stored.ndim == 2 and np.array_equal(stored[0], rows[: stored.shape[1]])
    return stored[1] if known else None


def _verdicts_of(runs: Sequence[Run], recipe: Recipe, rows: int, last: int) -> Verdicts:
    """The verdicts of the runs, one after the other.

    Args:
        rows: of all runs.
        last: position of the criterion that is applied again; what it found is left out.
    """
    verdicts, kind, start, parts = Verdicts.none(rows), position_type(rows), 0, []
    positions = {criterion.name: position for position, criterion in enumerate(recipe.criteria)} | {None: -1}
    for run in runs:
        begin = start
        for shard in run.shards:
            table = verdicts_table(run, shard.number)
            dropped_by = np.array([positions[name] for name in table["dropped_by"].to_pylist()], np.int16)
            verdicts.dropped_by[start : start + len(table)] = dropped_by
            group, distance = table["group"].to_numpy(), table["distance"].to_numpy()
            members = np.flatnonzero((group >= 0) & (dropped_by != last))
            duplicates = np.flatnonzero(~np.isnan(distance) & (dropped_by != last))
            kept_instead = numbers_of(table["kept_instead"].take(pa.array(duplicates)))
            # Numbers of groups are below the number of rows, so those of different runs differ.
            places = [part.astype(kind) for part in (members + start, group[members] + begin, duplicates + start)]
            parts.append((*places, kept_instead, distance[duplicates]))
            start += len(table)
    if parts:
        members, group, duplicates, kept_instead, distance = map(np.concatenate, zip(*parts, strict=True))
        verdicts.found.append(Outcome(members[:0], members, group, duplicates, kept_instead, distance))
    return verdicts
