"""The scores of a run as criteria judge them, and the searches for near-duplicates that criteria ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.columns import FEATURES
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import Progress
from danqing.engine.decide.dedup import fingerprints, groups
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.neighbours import nearest_rows
from danqing.engine.recipe.criteria import Exclusion, Redundancy
from danqing.engine.recipe.outcome import Outcome, Recall
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run


@dataclass
class Scores:
    """The columns that DECIDE reads, of all shards of a run one after the other.

    Attributes:
        uid: object (rows,).
        error: boolean (rows,), whether the row has an error.
        gated_at: object (rows,), the stage that the row did not reach, or None.
        feature_row: int64 (rows,), row in the concatenated `features`, -1 without features.
        features: float16 (rows, dimension) arrays, memory-mapped.
        columns: column → its values as they are stored.
        shard_rows: rows of each shard.
    """

    uid: np.ndarray
    error: np.ndarray
    gated_at: np.ndarray
    feature_row: np.ndarray
    features: list[np.ndarray]
    columns: Mapping[str, pa.ChunkedArray]
    shard_rows: list[int]

    def __getitem__(self, column: str) -> np.ndarray:
        """float64 (rows,): the column's numbers, NaN where there is none."""
        numbers: np.ndarray = self.columns[column].cast(pa.float64()).to_numpy()
        return numbers

    def known(self, column: str) -> np.ndarray:
        """Boolean (rows,): the rows that have a value in the column."""
        if column == FEATURES:
            return self.feature_row >= 0
        valid: np.ndarray = self.columns[column].is_valid().to_numpy()
        return valid

    def features_of(self, rows: np.ndarray, device: Device) -> Features:
        """The features of some rows, int64, on the device."""
        return Features(device, self.features, self.feature_row[rows])

    def group_duplicates(
        self, criterion: Redundancy, rows: np.ndarray, device: Device, progress: Progress | None = None
    ) -> Outcome:
        """Groups the near-duplicates among some rows; of each group, the representative passes."""
        if criterion.column != FEATURES:
            return self._group_values(criterion, rows, device)
        features = self.features_of(rows, device)
        return self.group_components(criterion, rows, connect_near_rows(features, criterion, progress), progress)

    def group_components(
        self, criterion: Redundancy, rows: np.ndarray, components: NearComponents, progress: Progress | None = None
    ) -> Outcome:
        """Groups rows whose components are known; of each group, the representative passes."""
        features, centroid = components.features, criterion.keep == "centroid"
        choose = groups.nearest_to_centroid(features) if centroid else self._choice(criterion, rows)
        found = groups.near_groups(
            features, criterion.within, choose, criterion.max_diameter, progress, components.first
        )
        return replace(self._outcome(rows, *found), recall=components.recall)

    def _group_values(self, criterion: Redundancy, rows: np.ndarray, device: Device) -> Outcome:
        """Groups rows of equal values, or of hashes that differ in a few bits."""
        column = self.columns[criterion.column].take(pa.array(rows)).combine_chunks()
        if criterion.within:
            values = column.to_numpy()
            group = fingerprints.group_hashes(device, values, int(criterion.within))
        else:
            values = column.dictionary_encode().indices.to_numpy()
            group = fingerprints.group_equal(values)
        kept = groups.representatives(group, np.arange(len(rows)), self._choice(criterion, rows))
        return self._outcome(rows, group, kept, np.bitwise_count(values ^ values[kept]).astype(float))

    def _choice(self, criterion: Redundancy, rows: np.ndarray) -> groups.Choice:
        return groups.highest(self[criterion.highest][rows]) if criterion.highest else groups.first

    def _outcome(self, rows: np.ndarray, group: np.ndarray, kept: np.ndarray, distance: np.ndarray) -> Outcome:
        """The outcome for rows in groups.

        Args:
            rows: int64 (n,), the rows that were compared; the other arrays refer to positions in it.
            group: int64 (n,), the first position of each one's group.
            kept: int64 (n,), the representative of each one's group.
            distance: float64 (n,), to the representative.
        """
        grouped = np.bincount(group, minlength=len(group))[group] > 1
        drops = kept != np.arange(len(kept))
        return Outcome(
            passed=rows[~drops],
            members=rows[grouped],
            group=rows[group[grouped]],
            duplicates=rows[drops],
            kept_instead=self.uid[rows[kept[drops]]],
            distance=distance[drops],
        )

    def compare_with_run(
        self, criterion: Exclusion, rows: np.ndarray, device: Device, progress: Progress | None = None
    ) -> Outcome:
        """Drops the rows that are near a row of another run."""
        uid, others = read_reference(Path(criterion.folder), device)
        nearest, distance = nearest_rows(self.features_of(rows, device), others, criterion.within, progress)
        drops = nearest >= 0
        return Outcome(
            passed=rows[~drops],
            duplicates=rows[drops],
            kept_instead=uid[nearest[drops]],
            distance=distance[drops],
        )


@dataclass(frozen=True)
class NearComponents:
    """The connected components of rows, where near pairs are connected.

    Attributes:
        features: of the rows.
        first: int64 (rows,), the smallest row of each one's component.
        recall: measured, if the search may miss pairs.
    """

    features: Features
    first: np.ndarray
    recall: Recall | None = None


def connect_near_rows(
    features: Features, criterion: Redundancy, progress: Progress | None = None, earlier: np.ndarray | None = None
) -> NearComponents:
    """Finds the connected components of rows, where near pairs are connected.

    Args:
        features: of the rows to compare.
        criterion: its distance and the recall it asks for.
        progress: counts comparisons.
        earlier: int64, `first` of the first rows, which are not compared with each other again.
    """
    if criterion.recall == 1:
        return NearComponents(features, groups.near_components(features, criterion.within, progress, earlier))
    return NearComponents(
        features, *groups.likely_components(features, criterion.within, criterion.recall, progress, earlier)
    )


def read_scores(run: Run, recipe: Recipe) -> Scores:
    """Reads the columns that the recipe's criteria name, and maps the features.

    Raises:
        DanqingError: the run has no such column.
    """
    names = dict.fromkeys(["uid", "error", "gated_at", "feature_row", *recipe.columns])
    tables, blocks = [], []
    offset = 0
    for shard in run.shards:
        path = run.scores_path(shard.number)
        known = pq.read_schema(path).names
        absent = [name for name in names if name not in known]
        if absent:
            raise DanqingError(f"{path}: the run has no column {absent[0]!r}; score again with a recipe that names it")
        table = pq.read_table(path, columns=list(names))
        rows = table["feature_row"].to_numpy()
        tables.append(table.set_column(3, "feature_row", pa.array(np.where(rows >= 0, rows + offset, -1), pa.int64())))
        block = np.load(run.features_path(shard.number), mmap_mode="r")
        if len(block):
            blocks.append(block)
            offset += len(block)
    table = pa.concat_tables(tables)
    return Scores(
        uid=table["uid"].to_numpy(),
        error=table["error"].is_valid().to_numpy(),
        gated_at=table["gated_at"].to_numpy(),
        feature_row=table["feature_row"].to_numpy(),
        features=blocks,
        columns={name: table[name] for name in recipe.columns},
        shard_rows=[len(t) for t in tables],
    )


def read_reference(folder: Path, device: Device) -> tuple[np.ndarray, Features]:
    """Reads a run that rows are compared with.

    Returns:
        The uids, object (rows,), and the features of the run's kept rows; of all rows if it has no verdicts.
    """
    run = Run.open(folder)
    scores = read_scores(run, replace(run.recipe, criteria=()))
    wanted = scores.feature_row >= 0
    if "decided" in run.manifest:
        kept = [pq.read_table(run.verdicts_path(shard.number), columns=["keep"]) for shard in run.shards]
        wanted &= pa.concat_tables(kept)["keep"].to_numpy()
    return scores.uid[wanted], scores.features_of(np.flatnonzero(wanted), device)
