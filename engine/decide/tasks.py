"""The search for near rows as tasks, which any process on any machine can do, twice and in any order.

The rows that reach a criterion are cut into blocks; a task compares two blocks, or one with itself, and writes a
spanning forest of the near pairs: at most one edge a row. The components of all forests together are those of all near
pairs, so verdicts are the same as without tasks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Self
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq
import xxhash

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit, read_json, write_json
from danqing.engine.core.progress import Progress
from danqing.engine.decide.columns import StoredColumns
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.groups import first_rows
from danqing.engine.decide.dedup.index import AUTO, INDEXES, choose_index
from danqing.engine.recipe.criteria import Redundancy
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import SCORE_AGAIN, reading
from danqing.engine.score.ledger import FEATURES_HASH
from danqing.kernels.neighbours.components import join_edges

FOLDER, LIST = "neighbours", "tasks.json"
"""The list of a criterion is OUT/neighbours/CRITERION/tasks.json; its rows and the forests are beside it."""
HASHED_ROWS = 1 << 20
"""Rows that are hashed at the same time."""
LATEST = "latest.json"
"""File in OUT/neighbours that names the criterion whose tasks were listed last."""


class ListedError(Exception):
    """Ends a walk over the criteria at the first one whose tasks are not done; `tasks` are those."""

    def __init__(self, tasks: TaskList) -> None:
        super().__init__(tasks.criterion)
        self.tasks = tasks


@dataclass(frozen=True)
class TaskList:
    """The tasks of one criterion.

    Attributes:
        criterion: its name.
        within: its cosine distance.
        recipe_hash: of the recipe that it was listed with.
        scores: hash of the run's scores and features.
        rows_hash: of the rows that are compared.
        blocks: borders of the blocks, as positions among the rows: one more than there are blocks.
        sizes: number of rows of each shard.
        features: hash of each shard's features, as its scores name it.
    """

    criterion: str
    within: float
    recipe_hash: str
    scores: str
    rows_hash: str
    blocks: Sequence[int]
    sizes: Sequence[int]
    features: Sequence[str]

    @classmethod
    def read(cls, run: Run, criterion: str) -> Self | None:
        """Reads the list of a criterion; None if there is none."""
        path = folder_of(run, criterion) / LIST
        if not path.exists():
            return None
        remedy = f"delete {path.parent} and write the list again: {list_again(run)}"
        content = read_json(path, remedy)
        try:
            return cls(**content)
        except TypeError as problem:
            raise DanqingError(f"{path}: not a list of tasks: {problem}; {remedy}") from None

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The blocks that each task compares."""
        count = len(self.blocks) - 1
        return [(one, other) for one in range(count) for other in range(one, count)]

    def comparisons(self, number: int) -> int:
        """Number of pairs of rows that a task compares."""
        one, other = self.pairs[number]
        sizes = [self.blocks[block + 1] - self.blocks[block] for block in (one, other)]
        return sizes[0] * (sizes[0] - 1) // 2 if one == other else sizes[0] * sizes[1]

    @property
    def rows(self) -> int:
        """Number of rows that are compared."""
        return self.blocks[-1]

    @cached_property
    def digest(self) -> str:
        """Hash of what is compared, part of the names of forests, so that lists do not share forests."""
        return xxhash.xxh3_64_hexdigest(json.dumps(asdict(self) | {"recipe_hash": ""}).encode())

    def rows_path(self, run: Run) -> Path:
        """The file of the rows that are compared: int64, positions in the run.

        Its name has their hash, so that a task that began with an earlier list does not read the rows of a later one.
        """
        return folder_of(run, self.criterion) / f"rows-{self.rows_hash}.npy"

    def path(self, run: Run, number: int) -> Path:
        """The file of a task's forest."""
        return folder_of(run, self.criterion) / f"{number:05d}-{self.digest}.npy"

    def missing(self, run: Run) -> list[int]:
        """The tasks that are not done."""
        return [number for number in range(len(self.pairs)) if not self.path(run, number).exists()]


@dataclass(frozen=True)
class TaskSearches:
    """Searches for near rows that were made as tasks.

    Attributes:
        run: the run.
        recipe_hash: of the recipe to decide with.
        scores: hash of the run's scores and features.
        wanted: number of tasks to list for the first criterion whose tasks are not done; 0: all must be done.
        elsewhere: does the tasks that were listed, on other machines; None: the walk ends with `ListedError`.
    """

    run: Run
    recipe_hash: str
    scores: str
    wanted: int = 0
    elsewhere: Callable[[TaskList], None] | None = None

    def components(self, criterion: Redundancy, rows: np.ndarray, device: Device) -> np.ndarray | None:
        """The connected components of near rows, as `NearComponents.first`; None if no tasks search for them.

        Args:
            criterion: the criterion.
            rows: (rows,), ascending, positions in the run.
            device: unites the forests.

        Raises:
            DanqingError: the list is that of other rows, or of another distance; or tasks are missing.
            ListedError: tasks were listed.
        """
        found = TaskList.read(self.run, criterion.name)
        if found is None and not self.wanted:
            return None
        if criterion.recall < 1:
            if self.elsewhere:
                return None
            raise DanqingError(
                f"{criterion.name}: tasks compare all pairs, but it asks for a recall of {criterion.recall:g}; "
                f"give --set {criterion.name}.recall=1, or delete {folder_of(self.run, criterion.name)}"
            )
        problems = self._problems(found, criterion, rows) if found else []
        if self.elsewhere:
            tasks = found if found and not problems else self._write(self._list(criterion, rows), rows)
            self.elsewhere(tasks)
            return unite(self.run, tasks, device)
        missing = found.missing(self.run) if found else []
        if self.wanted and (found is None or problems or missing):
            raise ListedError(self._write(self._list(criterion, rows), rows))
        assert found is not None
        if problems:
            raise DanqingError(
                f"{folder_of(self.run, criterion.name)}: the tasks were listed for another decision: "
                f"{'; '.join(problems)}. List them again: {list_again(self.run)}; or delete that folder to search "
                "without tasks"
            )
        if missing:
            raise DanqingError(
                f"{self.run.folder}: {len(missing)} of {len(found.pairs)} tasks of {criterion.name} are not done: "
                f"{_shown(missing)}; run `danqing decide {self.run.folder} --neighbour-task {missing[0]}`"
            )
        return unite(self.run, found, device)

    def _problems(self, found: TaskList, criterion: Redundancy, rows: np.ndarray) -> list[str]:
        """The differences between a list and the present decision."""
        problems = []
        if found.within != criterion.within:
            problems.append(f"within {found.within:g} there, {criterion.within:g} here")
        if found.scores != self.scores:
            problems.append("the scores changed since")
        elif found.rows_hash != _digest(rows):
            problems.append(
                f"{found.rows:,} rows reach {criterion.name} with recipe {found.recipe_hash} there, {len(rows):,} or "
                f"others with {self.recipe_hash} here"
            )
        return problems

    def _list(self, criterion: Redundancy, rows: np.ndarray) -> TaskList:
        """Cuts the rows into blocks."""
        count = math.ceil((math.sqrt(8 * self.wanted + 1) - 1) / 2)  # n blocks make n (n + 1) / 2 pairs
        borders = np.linspace(0, len(rows), min(count, max(len(rows), 1)) + 1).astype(np.int64).tolist()
        shards = [_shard(self.run, shard.number) for shard in self.run.shards]
        sizes, hashes = [size for size, _ in shards], [digest for _, digest in shards]
        return TaskList(
            criterion.name, criterion.within, self.recipe_hash, self.scores, _digest(rows), borders, sizes, hashes
        )

    def _write(self, tasks: TaskList, rows: np.ndarray) -> TaskList:
        """Writes a list; removes the rows and forests of others."""
        folder = folder_of(self.run, tasks.criterion)
        with commit(tasks.rows_path(self.run)) as file:
            np.save(file, rows.astype(np.int64))
        write_json(folder / LIST, asdict(tasks))
        write_json(folder.parent / LATEST, {"criterion": tasks.criterion})
        own = {tasks.rows_path(self.run), *(tasks.path(self.run, number) for number in range(len(tasks.pairs)))}
        for path in folder.glob("*-*.npy"):
            if path not in own:
                path.unlink(missing_ok=True)
        return tasks


def latest_list(run: Run) -> TaskList:
    """The list that was written last.

    Raises:
        DanqingError: there is none.
    """
    path = run.folder / FOLDER / LATEST
    if path.exists():
        name = read_json(path, f"write the list again: {list_again(run)}").get("criterion")
        if found := TaskList.read(run, str(name)):
            return found
    raise DanqingError(f"{run.folder}: no list of tasks; write it first: {list_again(run)}")


def run_task(
    run: Run, tasks: TaskList, number: int, device: Device, progress: Progress | None = None, neighbours: str = AUTO
) -> None:
    """Does a task and writes its forest: int64 (2, edges), positions among the rows; nothing if it is done.

    Args:
        run: the run, which is only read.
        tasks: its list.
        number: of the task.
        device: compares the rows.
        progress: counts comparisons.
        neighbours: index of the search, or `auto` (`choose_index`).

    Raises:
        DanqingError: no such task, or features that changed since the tasks were listed.
    """
    if number >= len(tasks.pairs):
        raise DanqingError(f"--neighbour-task {number}: {run.folder} has the tasks 0 to {len(tasks.pairs) - 1}")
    path = tasks.path(run, number)
    if path.exists():
        return
    ranges = [np.arange(tasks.blocks[block], tasks.blocks[block + 1]) for block in dict.fromkeys(tasks.pairs[number])]
    rows = np.concatenate(ranges)
    features = _features(run, tasks, rows, device)
    index = INDEXES[choose_index(neighbours, device.kind)]()
    parent = device.xp.arange(len(rows))
    if len(ranges) == 1:
        index.join(features, tasks.within, parent, 0, progress)
    else:
        index.join_across(features, tasks.within, parent, len(ranges[0]), progress)
    first = first_rows(device, parent)
    joined = np.flatnonzero(first != np.arange(len(first)))
    with commit(path) as file:
        np.save(file, np.stack([rows[joined], rows[first[joined]]]))


def _features(run: Run, tasks: TaskList, positions: np.ndarray, device: Device) -> Features:
    """The features of rows at some positions of a list; only the shards that hold them are read."""
    path = tasks.rows_path(run)
    with reading(path, f"write the list again: {list_again(run)}"):
        rows = np.load(path, mmap_mode="r")[positions]
    for shard in np.unique(np.searchsorted(np.cumsum(tasks.sizes), rows, "right")).tolist():
        if _shard(run, shard) != (tasks.sizes[shard], tasks.features[shard]):
            raise DanqingError(
                f"{run.scores_path(shard)}: was scored again, so list the tasks again: {list_again(run)}"
            )
    return Features(device, *StoredColumns(run, tasks.sizes).features(rows))


def unite(run: Run, tasks: TaskList, device: Device) -> np.ndarray:
    """Unites the forests of all tasks.

    Returns:
        (rows,), as `position_type`, on the host: the smallest row of each row's component.
    """
    parent = device.xp.arange(tasks.rows)
    for number in range(len(tasks.pairs)):
        path = tasks.path(run, number)
        with reading(path, f"run `danqing decide {run.folder} --neighbour-task {number}`"):
            edges = np.load(path)
            if edges.ndim != 2 or len(edges) != 2 or (edges.size and edges.max() >= tasks.rows):
                raise ValueError("not a forest of this list's rows")
        join_edges.launch(device, edges.shape[1], device.up(edges[0]), device.up(edges[1]), parent)
    return first_rows(device, parent)


def _shard(run: Run, number: int) -> tuple[int, str]:
    """A shard's number of rows, and the hash of its features that its scores name; empty if they name none."""
    with reading(run.scores_path(number), SCORE_AGAIN):
        stored = pq.read_metadata(run.scores_path(number))
    return stored.num_rows, (stored.metadata or {}).get(FEATURES_HASH, b"").decode()


def folder_of(run: Run, criterion: str) -> Path:
    """The folder of a criterion's tasks."""
    return run.folder / FOLDER / quote(criterion, safe="")


def list_again(run: Run) -> str:
    """The command that lists tasks."""
    return f"danqing decide {run.folder} --neighbour-tasks N"


def _digest(rows: np.ndarray) -> str:
    """Hash of rows, of any type of integers."""
    digest = xxhash.xxh3_128()
    for start in range(0, len(rows), HASHED_ROWS):
        digest.update(rows[start : start + HASHED_ROWS].astype(np.int64).data)
    return digest.hexdigest()


def _shown(tasks: Sequence[int]) -> str:
    shown = ", ".join(map(str, tasks[:10]))
    return shown if len(tasks) <= 10 else f"{shown} and {len(tasks) - 10:,} more"
