"""The scores of a run as criteria judge them, and the searches for near-duplicates that criteria ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from danqing.engine.core.columns import FEATURES
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.logs import log
from danqing.engine.core.progress import Progress
from danqing.engine.core.storage import fetch_all, path_of
from danqing.engine.decide.dedup import fingerprints, groups
from danqing.engine.decide.dedup.captions import SimilarTexts, nearest_texts
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.index import AUTO, INDEXES, choose_index
from danqing.engine.decide.feature_files import map_run
from danqing.engine.decide.uids import numbers_of
from danqing.engine.recipe.criteria import Criterion, Exclusion, Redundancy, RowCriterion
from danqing.engine.recipe.outcome import Outcome, Recall
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import SCORE_AGAIN, reading, verdicts_table


@dataclass
class Scores:
    """What DECIDE reads, of all shards of a run one after the other.

    Attributes:
        uid: uint64 (rows, 2), see `engine.decide.uids`.
        error: boolean (rows,), whether the row has an error.
        gated_at: text (rows,), the stage that the row did not reach, or null.
        feature_row: int64 (rows,), row in the concatenated `features`, -1 without features.
        features: float16 (rows, dimension) arrays, memory-mapped.
        columns: column → its values as they are stored; without those that only criteria in `judged` read.
        shard_rows: rows of each shard.
        judged: name of a criterion that judges rows alone → its `Judgement`, if it was made when the shards were read,
            so that its columns need not stay in memory.
        later: the recipe's criteria after the one that judges now.
        neighbours: index of the searches for near rows, or `auto` (`choose_index`).
    """

    uid: np.ndarray
    error: np.ndarray
    gated_at: pa.Array | pa.ChunkedArray
    feature_row: np.ndarray
    features: list[np.ndarray]
    columns: Mapping[str, pa.ChunkedArray]
    shard_rows: list[int]
    judged: Mapping[str, Judgement] = field(default_factory=dict)
    later: Sequence[Criterion] = ()
    neighbours: str = AUTO

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
        if found := self.judged.get(criterion.name):
            self._refuse_unscored(alive & ~found.known(), criterion.name)
            return Outcome(np.flatnonzero(alive & found.passed()))
        judged = criterion.can_judge(self)
        self._refuse_unscored(alive & ~judged, criterion.name)
        return criterion.judge(self, alive & judged, device, progress)

    def _refuse_unscored(self, missing: np.ndarray, criterion: str) -> None:
        """Refuses rows that a gate of a stricter recipe dropped before the stage: they have neither score nor error."""
        missing = np.flatnonzero(missing & ~self.error)
        gated = self.gated_at.take(pa.array(missing)).drop_null()
        if len(gated):
            raise DanqingError(
                f"{len(gated)} pairs have no score for {criterion!r}: the recipe they were scored with dropped them "
                f"before the stage {gated[0].as_py()!r}. Score again with this recipe, or once with "
                "--score-everything, after which any threshold can be decided."
            )
        if len(missing):
            log.warning("%d pairs reached the stage of %s and got no score; it drops them", len(missing), criterion)

    def survive(self, rows: np.ndarray, device: Device) -> np.ndarray:
        """Boolean (n,): whether each of some rows, int64 (n,), passes the later criteria that judge rows alone."""
        alive = np.zeros(len(self.error), bool)
        alive[rows] = True
        for criterion in self.later:
            if criterion.judges_rows_alone and alive.any():
                passed = self.judge(criterion, alive, device).passed
                alive[:] = False
                alive[passed] = True
        return alive[rows]

    def features_of(self, rows: np.ndarray, device: Device) -> Features:
        """The features of some rows, int64, on the device."""
        return Features(device, self.features, self.feature_row[rows])

    def group_duplicates(
        self, criterion: Redundancy, rows: np.ndarray, device: Device, progress: Progress | None = None
    ) -> Outcome:
        """Groups the near-duplicates among some rows; of each group, at most `keep_at_most` rows pass."""
        if criterion.column != FEATURES:
            return self._group_values(criterion, rows, device, progress)
        components = connect_near_rows(self.features_of(rows, device), criterion, progress, index=self.neighbours)
        return self.group_components(criterion, rows, components, progress)

    def group_components(
        self, criterion: Redundancy, rows: np.ndarray, components: NearComponents, progress: Progress | None = None
    ) -> Outcome:
        """Groups rows whose components are known; of each group, at most `keep_at_most` rows pass."""
        features = components.features
        choose = self._choice(criterion, rows, features.device, features)
        exact = choose_index(self.neighbours, features.device.kind)
        found = groups.near_groups(
            features, criterion.within, choose, criterion.max_diameter, progress, components.first, exact
        )
        passes = groups.passing(found[1], choose, criterion.keep_at_most)
        return replace(self._outcome(rows, *found, passes), recall=components.recall, index=components.index)

    def _group_values(
        self, criterion: Redundancy, rows: np.ndarray, device: Device, progress: Progress | None = None
    ) -> Outcome:
        """Groups rows of equal values, of hashes that differ in a few bits, or of similar texts.

        An empty text is in no group.
        """
        column, positions, similar = self.columns[criterion.column], np.arange(len(rows)), None
        is_text = pa.types.is_string(column.type)
        if is_text or not criterion.within:  # encoded before rows are taken, so that texts are not copied
            encoded = _encode(column)
            values = encoded.indices.fill_null(-1).to_numpy()[rows]
        else:
            values = column.take(pa.array(rows)).to_numpy()
        if not criterion.within:
            group = fingerprints.group_equal(values)
        elif is_text:
            similar = SimilarTexts(device, values, encoded.dictionary, criterion.within, progress)
            group = similar.group
        else:
            group = fingerprints.group_hashes(device, values, int(criterion.within))
        if is_text:
            group = np.where(_empty(column, rows), positions, group)
        choose = self._choice(criterion, rows, device)
        kept = groups.representatives(group, positions, choose)
        distance = similar.distances(kept) if similar else np.bitwise_count(values ^ values[kept]).astype(float)
        return self._outcome(rows, group, kept, distance, groups.passing(kept, choose, criterion.keep_at_most))

    def _choice(
        self, criterion: Redundancy, rows: np.ndarray, device: Device, features: Features | None = None
    ) -> groups.Choice:
        """How the criterion chooses representatives among positions in `rows`."""
        choose = groups.highest(self[criterion.highest][rows]) if criterion.highest else groups.first
        if features is not None and criterion.keep == "centroid":
            choose = groups.nearest_to_centroid(features)
        return groups.among(choose, lambda at: self.survive(rows[at], device)) if criterion.prefer else choose

    def _outcome(
        self, rows: np.ndarray, group: np.ndarray, kept: np.ndarray, distance: np.ndarray, passes: np.ndarray
    ) -> Outcome:
        """The outcome for rows in groups.

        Args:
            rows: int64 (n,), the rows that were compared; the other arrays refer to positions in it.
            group: int64 (n,), the first position of each one's group.
            kept: int64 (n,), the representative of each one's group.
            distance: float64 (n,), to the representative.
            passes: boolean (n,), the representatives and the other rows that pass.
        """
        grouped = np.bincount(group, minlength=len(group))[group] > 1
        drops = ~passes
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
        there, wanted = read_reference(path_of(criterion.folder), criterion)
        uid, index = there.uid[wanted], ""
        if criterion.column == FEATURES:
            features = self.features_of(rows, device), there.features_of(wanted, device)
            index = choose_index(self.neighbours, device.kind)
            nearest, distance = INDEXES[index]().nearest(*features, criterion.within, progress)
        else:
            ours, theirs = self.columns[criterion.column], there.columns[criterion.column]
            encoded = _encode(pa.chunked_array([*theirs.chunks, *ours.chunks], ours.type))
            values = encoded.indices.fill_null(-1).to_numpy()[np.concatenate([wanted, len(theirs) + rows])]
            known = (values, encoded.dictionary, len(wanted))
            nearest, distance = nearest_texts(device, *known, criterion.within, progress)
            if pa.types.is_string(ours.type):
                nearest = np.where(_empty(ours, rows), -1, nearest)
        drops = nearest >= 0
        return Outcome(
            passed=rows[~drops],
            duplicates=rows[drops],
            kept_instead=uid[nearest[drops]],
            distance=distance[drops],
            index=index,
        )


class Judgement:
    """Which rows a criterion could judge and which of them passed, eight rows a byte.

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
class NearComponents:
    """The connected components of rows, where near pairs are connected.

    Attributes:
        features: of the rows.
        first: int64 (rows,), the smallest row of each one's component.
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
        earlier: int64, `first` of the first rows, which are not compared with each other again.
        index: see `choose_index`.
    """
    index, search = choose_index(index, features.device.kind, criterion.recall), (progress, earlier)
    if criterion.recall == 1:
        return NearComponents(features, groups.near_components(features, criterion.within, *search, index), index)
    first, recall = groups.likely_components(features, criterion.within, criterion.recall, *search, index)
    return NearComponents(features, first, index, recall)


def read_scores(run: Run, recipe: Recipe) -> Scores:
    """Reads what the recipe's criteria need, shard by shard, and maps the features.

    Criteria that judge a row by its own scores are judged here, so that their columns are in memory for one shard only.

    Raises:
        DanqingError: the run has no such column.
    """
    by_row = [criterion for criterion in recipe.criteria if isinstance(criterion, RowCriterion)]
    others = {c for criterion in recipe.criteria if criterion not in by_row for c in criterion.columns} - {FEATURES}
    paths = [run.scores_path(shard.number) for shard in run.shards]
    fetch_all(paths)
    sizes = [_count_rows(path) for path in paths]
    rows = sum(sizes)
    uid, error, feature_row = np.empty((rows, 2), np.uint64), np.empty(rows, bool), np.empty(rows, np.int64)
    judged = {criterion.name: Judgement(rows) for criterion in by_row}
    columns: dict[str, list[pa.ChunkedArray]] = {name: [] for name in ("gated_at", *sorted(others))}
    blocks = map_run([run.features_path(shard.number) for shard in run.shards], run.folder)
    start = offset = 0
    for path, size, block in zip(paths, sizes, blocks, strict=True):
        table = _read_columns(path, ["uid", "error", "gated_at", "feature_row", *recipe.columns])
        part = slice(start, start + size)
        uid[part], error[part] = numbers_of(table["uid"]), table["error"].is_valid().to_numpy()
        stored = table["feature_row"].to_numpy()
        feature_row[part] = np.where(stored >= 0, stored + offset, -1)
        for name, chunks in columns.items():
            chunks.append(pc.dictionary_encode(table[name]) if name == "gated_at" else table[name])
        values = {name: table[name] for name in recipe.columns}
        alone = Scores(uid[part], error[part], table["gated_at"], feature_row[part], [], values, [size])
        for criterion in by_row:
            judged[criterion.name].enter(start, criterion.can_judge(alone), criterion.passes(alone))
        start, offset = start + size, offset + len(block)
    joined = {name: _join(chunks) for name, chunks in columns.items()}
    gated_at = joined.pop("gated_at")
    return Scores(uid, error, gated_at, feature_row, [block for block in blocks if len(block)], joined, sizes, judged)


def _count_rows(path: Path) -> int:
    with reading(path, SCORE_AGAIN):
        return int(pq.read_metadata(path).num_rows)


def _join(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    chunks = [chunk for column in columns for chunk in column.chunks]
    joined = pa.chunked_array(chunks, columns[0].type if columns else pa.string())
    return joined.unify_dictionaries()


def _read_columns(path: Path, names: list[str]) -> pa.Table:
    with reading(path, SCORE_AGAIN), pq.ParquetFile(path) as file:
        absent = [name for name in names if name not in file.schema_arrow.names]
        if absent:
            raise DanqingError(f"{path}: the run has no column {absent[0]!r}; score again with a recipe that names it")
        return file.read(list(dict.fromkeys(names)))


def read_reference(folder: Path, criterion: Exclusion) -> tuple[Scores, np.ndarray]:
    """Reads the column of a run that rows are compared with.

    Returns:
        The scores, and the rows that are compared, int64: those that the run kept, or all if it has no verdicts.
    """
    run = Run.open(folder)
    scores = read_scores(run, replace(run.recipe, criteria=(criterion,)))
    wanted = scores.known(criterion.column)
    if "decided" in run.manifest:
        kept = [verdicts_table(run, shard.number, ["keep"]) for shard in run.shards]
        wanted &= pa.concat_tables(kept)["keep"].to_numpy()
    return scores, np.flatnonzero(wanted)


def _encode(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Numbers the values of a column; texts get 64-bit offsets, since they may exceed 2 GiB."""
    column = column.cast(pa.large_string()) if pa.types.is_string(column.type) else column
    return column.dictionary_encode().combine_chunks()


def _empty(column: pa.ChunkedArray, rows: np.ndarray) -> np.ndarray:
    """Boolean (n,): whether each of some rows, int64 (n,), has an empty text."""
    empty: np.ndarray = pc.binary_length(column).to_numpy()[rows] == 0
    return empty
