"""The scores of a run as criteria judge them, and the searches for near-duplicates that criteria ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.columns import FEATURES
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.logs import log
from danqing.engine.core.progress import Progress
from danqing.engine.core.storage import RemotePath, fetch_all, path_of
from danqing.engine.decide.columns import Columns, StoredColumns, TableColumns, read_columns
from danqing.engine.decide.dedup import groups
from danqing.engine.decide.dedup.captions import nearest_texts
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.index import AUTO, INDEXES, choose_index
from danqing.engine.decide.feature_files import map_features
from danqing.engine.decide.tasks import TaskSearches
from danqing.engine.decide.values import encode, group_values, is_empty
from danqing.engine.recipe.criteria import Criterion, Exclusion, Redundancy, RowCriterion
from danqing.engine.recipe.outcome import Outcome, Recall, positions_of
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import SCORE_AGAIN, reading, verdicts_table


@dataclass
class Scores:
    """Columns that DECIDE reads, of all shards of a run one after the other.

    Attributes:
        error: boolean (rows,), whether the row has an error.
        columns: the stored columns, among them `uid`, `gated_at` (the stage that the row did not reach, or null) and
            `feature_row`.
        judged: name of a criterion → its `Judgement`, if it was made when the shards were read.
        later: the recipe's criteria after the one that judges now.
        neighbours: index of the searches for near rows, or `auto` (`choose_index`).
        searches: searches for near rows that were made as tasks.
        compared: the exact searches of features so far.
    """

    error: np.ndarray
    columns: Columns
    judged: Mapping[str, Judgement] = field(default_factory=dict)
    later: Sequence[Criterion] = ()
    neighbours: str = AUTO
    searches: TaskSearches | None = None
    compared: list[Compared] = field(default_factory=list)

    def __getitem__(self, column: str) -> np.ndarray:
        """float64 (rows,): the column's numbers, NaN where there is none."""
        return _numbers(self.columns.take(column))

    def known(self, column: str) -> np.ndarray:
        """Boolean (rows,): the rows that have a value in the column."""
        if column == FEATURES:
            has_features: np.ndarray = self.columns.take("feature_row").to_numpy() >= 0
            return has_features
        valid: np.ndarray = self.columns.take(column).is_valid().to_numpy()
        return valid

    def can_judge(self, criterion: Criterion) -> np.ndarray:
        """Boolean (rows,): the rows that have what the criterion needs."""
        found = self.judged.get(criterion.name)
        return found.known() if found else criterion.can_judge(self)

    def judge(
        self, criterion: Criterion, alive: np.ndarray, device: Device, progress: Progress | None = None
    ) -> Outcome:
        """Judges the living rows by a criterion; a row with an error fails if it lacks a score that is needed.

        Args:
            criterion: the criterion.
            alive: boolean (rows,).
            device: searches for near-duplicates.
            progress: counts comparisons.

        Raises:
            DanqingError: rows without an error lack a score, since they were scored with a stricter recipe.
        """
        judged = self.can_judge(criterion)
        self._refuse_unscored(alive & ~judged, criterion.name)
        if isinstance(criterion, RowCriterion) and criterion.name in self.judged:
            return Outcome(positions_of(alive & self.judged[criterion.name].passed()))
        judged &= alive
        return criterion.judge(self, judged, device, progress)

    def _refuse_unscored(self, missing: np.ndarray, criterion: str) -> None:
        """Refuses rows that a gate of a stricter recipe dropped before the stage: they have neither score nor error."""
        missing = np.flatnonzero(missing & ~self.error)
        if not len(missing):
            return
        gated = self.columns.take("gated_at", missing).drop_null()
        if len(gated):
            raise DanqingError(
                f"{len(gated)} pairs have no score for {criterion!r}: the recipe they were scored with dropped them "
                f"before the stage {gated[0].as_py()!r}. Score again with this recipe, or once with "
                "--score-everything, after which any threshold can be decided."
            )
        log.warning("%d pairs reached the stage of %s and got no score; it drops them", len(missing), criterion)

    def survive(self, rows: np.ndarray, device: Device) -> np.ndarray:
        """Boolean (n,): whether each of some rows, (n,), passes the later criteria that judge rows alone."""
        alive = np.zeros(len(self.error), bool)
        alive[rows] = True
        for criterion in self.later:
            if criterion.judges_rows_alone and alive.any():
                passed = self.judge(criterion, alive, device).passed
                alive[:] = False
                alive[passed] = True
        return alive[rows]

    def group_duplicates(
        self, criterion: Redundancy, rows: np.ndarray, device: Device, progress: Progress | None = None
    ) -> Outcome:
        """Groups the near-duplicates among some rows; of each group, at most `keep_at_most` rows pass."""
        if criterion.column != FEATURES:
            return outcome_of(rows, rows, self._group_values(criterion, rows, device, progress))
        near = self._may_be_near(criterion, rows)
        components = self._connect(criterion, near, device, progress, has_tasks=near is rows)
        found = self.represent(criterion, near, components, progress)
        first, recall, index = components.first, components.recall, components.index
        del components  # frees 16 bytes a row
        if criterion.recall == 1:
            self.compared.append(Compared(criterion.within, near[_crowded(criterion, found, first)]))
        del first
        return replace(outcome_of(rows, near, found), recall=recall, index=index)

    def _may_be_near(self, criterion: Redundancy, rows: np.ndarray) -> np.ndarray:
        """The rows that no earlier search within this distance, or a larger one, shows to be far from all others."""
        for earlier in self.compared:
            if criterion.recall == 1 and criterion.within <= earlier.within:
                rows = np.intersect1d(rows, earlier.crowded, assume_unique=True)
        return rows

    def _connect(
        self, criterion: Redundancy, rows: np.ndarray, device: Device, progress: Progress | None, has_tasks: bool
    ) -> NearComponents:
        """Connects near rows, or reads what tasks found (`has_tasks`: all rows that reached the criterion)."""
        features = Features(device, *self.columns.features(rows))
        if has_tasks and self.searches:
            first = self.searches.components(criterion, rows, device)
            if first is not None:
                return NearComponents(features, first, "tasks")
        return connect_near_rows(features, criterion, progress, index=self.neighbours)

    def represent(
        self, criterion: Redundancy, rows: np.ndarray, components: NearComponents, progress: Progress | None = None
    ) -> Represented:
        """Chooses the representatives of rows whose components are known.

        Args:
            rows: (rows,); the result has positions in them.
        """
        features = components.features
        choose = self._choice(criterion, rows, components.first, features.device, features)
        exact = choose_index(self.neighbours, features.device.kind)
        found = groups.near_groups(
            features, criterion.within, choose, criterion.max_diameter, progress, components.first, exact
        )
        return _represented(criterion, found, choose)

    def _group_values(
        self, criterion: Redundancy, rows: np.ndarray, device: Device, progress: Progress | None = None
    ) -> Represented:
        group, distances = group_values(self.columns, criterion, rows, device, progress)
        members, choose = groups.several(group), self._choice(criterion, rows, group, device)
        group = group[members]
        kept = groups.representatives(group, members, choose)
        return _represented(criterion, groups.Groups(members, group, kept, distances(members, kept)), choose)

    def _choice(
        self,
        criterion: Redundancy,
        rows: np.ndarray,
        first: np.ndarray,
        device: Device,
        features: Features | None = None,
    ) -> groups.Choice:
        """How the criterion chooses representatives among positions in `rows`.

        Args:
            first: (rows,), the smallest position of each one's group.
        """
        choose: groups.Choice = groups.first
        if criterion.highest:
            choose = groups.highest(_numbers(self.columns.take(criterion.highest, rows)))
        if features is not None and criterion.keep == "centroid":
            choose = groups.nearest_to_centroid(features)
        if not criterion.prefer:
            return choose
        members, survives = groups.several(first), np.zeros(len(rows), bool)
        survives[members] = self.survive(rows[members], device)
        return groups.Preferring(choose, survives)

    def compare_with_run(
        self, criterion: Exclusion, rows: np.ndarray, device: Device, progress: Progress | None = None
    ) -> Outcome:
        """Drops the rows that are near a row of another run."""
        there, wanted = read_reference(path_of(criterion.folder), criterion)
        index = ""
        if criterion.column == FEATURES:
            features = Features(device, *self.columns.features(rows)), Features(device, *there.features(wanted))
            index = choose_index(self.neighbours, device.kind)
            nearest, distance = INDEXES[index]().nearest(*features, criterion.within, progress)
        else:
            ours, theirs = self.columns.take(criterion.column, rows), there.take(criterion.column, wanted)
            encoded = encode(pa.chunked_array([*theirs.chunks, *ours.chunks], ours.type))
            known = (encoded.indices.to_numpy(), encoded.dictionary, len(theirs))
            nearest, distance = nearest_texts(device, *known, criterion.within, progress)
            if pa.types.is_string(ours.type):
                nearest = np.where(is_empty(ours), -1, nearest)
        drops = nearest >= 0
        kept, number = np.unique(nearest[drops], return_inverse=True)
        return Outcome(
            passed=rows[~drops],
            duplicates=rows[drops],
            kept_instead=there.uids(wanted[kept])[number],
            distance=distance[drops],
            index=index,
        )


class Judgement:
    """The rows that a criterion could judge and those that passed, as bit masks.

    Args:
        rows: their number.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._known, self._passed = (np.zeros(-(-rows // 8), np.uint8) for _ in range(2))

    def enter(self, start: int, known: np.ndarray, passed: np.ndarray) -> None:
        """Enters rows from `start` on, boolean (n,)."""
        for bits, values in ((self._known, known), (self._passed, known & passed)):
            shifted = np.packbits(np.concatenate([np.zeros(start % 8, bool), values]))
            bits[start // 8 : start // 8 + len(shifted)] |= shifted

    def known(self) -> np.ndarray:
        """Boolean (rows,): the rows that have what the criterion needs."""
        return np.unpackbits(self._known, count=self.rows).view(bool)

    def passed(self) -> np.ndarray:
        """Boolean (rows,): the rows that pass."""
        return np.unpackbits(self._passed, count=self.rows).view(bool)


@dataclass(frozen=True)
class Compared:
    """An exact search of features.

    Attributes:
        within: its distance.
        crowded: ascending: the rows that passed though another row of their component did. All other rows that
            passed are at least `within` away from each other and from these.
    """

    within: float
    crowded: np.ndarray


@dataclass(frozen=True)
class Represented:
    """Groups of rows, as positions among those that were compared.

    Attributes:
        found: the groups.
        passes: boolean (members,), the representatives and the other rows that pass.
        saved: see `Outcome`.
    """

    found: groups.Groups
    passes: np.ndarray
    saved: np.ndarray | None


def _represented(criterion: Redundancy, found: groups.Groups, choose: groups.Choice) -> Represented:
    saved = choose.saved if isinstance(choose, groups.Preferring) else None  # before further rows are chosen
    return Represented(found, groups.passing(found, choose, criterion.keep_at_most), saved)


def _crowded(criterion: Redundancy, represented: Represented, first: np.ndarray) -> np.ndarray:
    """The positions of the rows that pass though another row of their component does."""
    if criterion.keep_at_most == 1 and criterion.max_diameter is None:
        return first[:0].copy()
    left = np.setdiff1d(groups.several(first), represented.found.members[~represented.passes], assume_unique=True)
    return left[groups.recurs(first[left], len(first))]


def outcome_of(rows: np.ndarray, compared: np.ndarray, represented: Represented) -> Outcome:
    """The outcome for rows, ascending, of which some were compared, ascending."""
    found, drops = represented.found, ~represented.passes
    duplicates = compared[found.members[drops]]
    passes = np.ones(len(rows), bool)
    passes[np.searchsorted(rows, duplicates)] = False
    return Outcome(
        passed=rows[passes],
        members=compared[found.members],
        group=compared[found.group],
        duplicates=duplicates,
        kept_instead=compared[found.representative[drops]],
        distance=found.distance[drops],
        saved=None if represented.saved is None else compared[represented.saved],
    )


@dataclass(frozen=True)
class NearComponents:
    """The connected components of rows, where near pairs are connected.

    Attributes:
        features: of the rows.
        first: (rows,), the smallest row of each one's component, as `position_type`.
        index: name of the index that found them.
        recall: measured, if the search may miss pairs.
    """

    features: Features
    first: np.ndarray
    index: str
    recall: Recall | None = None


def connect_near_rows(
    features: Features,
    criterion: Redundancy,
    progress: Progress | None = None,
    earlier: np.ndarray | None = None,
    index: str = AUTO,
) -> NearComponents:
    """Finds the connected components of rows, where near pairs are connected.

    Args:
        features: of the rows to compare.
        criterion: its distance and the recall it asks for.
        progress: counts comparisons.
        earlier: `first` of the first rows, which are not compared with each other again.
        index: see `choose_index`.
    """
    index, search = choose_index(index, features.device.kind, criterion.recall), (progress, earlier)
    if criterion.recall == 1:
        return NearComponents(features, groups.near_components(features, criterion.within, *search, index), index)
    first, recall = groups.likely_components(features, criterion.within, criterion.recall, *search, index)
    return NearComponents(features, first, index, recall)


def read_scores(run: Run, recipe: Recipe) -> Scores:
    """Reads a run's scores, shard by shard.

    What criteria need to know of every row is kept in a few bits: criteria that judge a row by its own scores are
    judged here. Other criteria read their columns for the rows that are left, when they judge.

    Raises:
        DanqingError: the run has no such column.
    """
    shards = run.shards
    fetch_all(run.scores_path(shard.number) for shard in shards)
    sizes = [_count_rows(run.scores_path(shard.number)) for shard in shards]
    judged = {criterion.name: Judgement(sum(sizes)) for criterion in recipe.criteria}
    names = ["error", "gated_at", "feature_row", *recipe.columns]
    error, start = np.empty(sum(sizes), bool), 0
    for shard, size in zip(shards, sizes, strict=True):
        features = run.features_path(shard.number)
        if not isinstance(features, RemotePath):  # which is downloaded only if features are compared
            map_features(features)  # a damaged file is named before any search
        table = read_columns(run, shard.number, names)
        error[start : start + size] = table["error"].is_valid().to_numpy()
        alone = Scores(error[start : start + size], TableColumns({name: table[name] for name in names}))
        for criterion in recipe.criteria:
            known = criterion.can_judge(alone)
            passed = criterion.passes(alone) if isinstance(criterion, RowCriterion) else known
            judged[criterion.name].enter(start, known, passed)
        start += size
    return Scores(error, StoredColumns(run, sizes), judged)


def _count_rows(path: Path) -> int:
    with reading(path, SCORE_AGAIN):
        return int(pq.read_metadata(path).num_rows)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """float64 (rows,): the column's numbers, NaN where there is none."""
    numbers: np.ndarray = column.cast(pa.float64()).to_numpy()
    return numbers


def read_reference(folder: Path, criterion: Exclusion) -> tuple[Columns, np.ndarray]:
    """Opens a run that rows are compared with.

    Returns:
        Its columns, and the rows that are compared: those that the run kept, or all if it has no verdicts.
    """
    run = Run.open(folder)
    scores = read_scores(run, replace(run.recipe, criteria=(criterion,)))
    wanted = scores.can_judge(criterion)
    if "decided" in run.manifest:
        kept = [verdicts_table(run, shard.number, ["keep"]) for shard in run.shards]
        wanted &= pa.concat_tables(kept)["keep"].to_numpy()
    return scores.columns, positions_of(wanted)
