"""DECIDE: over the whole run, columns only. Scores and a recipe in, verdicts and a funnel out; seconds.

Walk the criteria in order. A score criterion drops the rows whose score lies outside; a redundancy criterion
looks at the rows that are left, and of every set of near-duplicates one stays; where rows are held against another
run, what is near one of its rows falls.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit, write_json
from danqing.engine.core.progress import Progress
from danqing.engine.decide.dedup import fingerprints, sets
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.neighbours import nearest_rows
from danqing.engine.decide.dedup.sample import Recall
from danqing.engine.decide.funnel import Funnel
from danqing.engine.decide.reference import check_references
from danqing.engine.recipe.criteria import FEATURES, AnyCriterion, Criterion, Redundancy
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run, log

MERGED = "merged"
"""In the manifest of a run that was made by merging others: which."""


@dataclass
class Scores:
    """The columns of all shards, one after the other.

    `columns`: float64, NaN where there is no score. `feature_row`: row among all `features`, -1 without.
    `compared`: columns that are only compared with themselves, as they are stored.
    """

    uid: np.ndarray
    error: np.ndarray
    gated_at: np.ndarray
    feature_row: np.ndarray
    features: list[np.ndarray]
    columns: dict[str, np.ndarray]
    compared: dict[str, pa.ChunkedArray]
    shard_rows: list[int]


@dataclass
class Verdicts:
    """Per row: `dropped_by` (position of the criterion, -1 = kept), its set (by its first row, -1 without), the uid of
    who was kept instead (None) and how far it is from that one (NaN).

    `recall`: by position, of criteria that need not find all near pairs, what they found.
    """

    dropped_by: np.ndarray
    group: np.ndarray
    kept_instead: np.ndarray
    distance: np.ndarray
    recall: dict[int, Recall] = field(default_factory=dict)

    def enter_sets(
        self, scores: Scores, rows: np.ndarray, group: np.ndarray, stays: np.ndarray, distance: np.ndarray
    ) -> np.ndarray:
        """Takes in the sets found among some rows (see `Sets`); returns the rows that stay."""
        in_set = np.bincount(group, minlength=len(group))[group] > 1
        falls = stays != np.arange(len(stays))
        self.group[rows[in_set]] = rows[group[in_set]]
        self.kept_instead[rows[falls]] = scores.uid[rows[stays[falls]]]
        self.distance[rows[falls]] = distance[falls]
        return rows[~falls]

    def enter_nearest(self, uid: np.ndarray, rows: np.ndarray, nearest: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Takes in which of other rows, known by their uids, is near each (-1: none); returns the rows that stay."""
        falls = nearest >= 0
        self.kept_instead[rows[falls]] = uid[nearest[falls]]
        self.distance[rows[falls]] = distance[falls]
        return rows[~falls]


def decide(run: Run, recipe: Recipe, device: Device, progress: Progress | None = None) -> Funnel:
    """Writes verdicts/NNNNN.parquet for every shard, then funnel.json; does nothing if they are already so.

    Raises:
        DanqingError: shards without scores, or a recipe that asks for scores which were never computed.
    """
    funnel_file = run.folder / "funnel.json"
    if MERGED in run.manifest:
        raise DanqingError(f"{run.folder} is a merge: decide the runs it was made of, then merge them again")
    if run.manifest.get("decided") == _decision(run, recipe) and funnel_file.exists():
        return Funnel.read(funnel_file)
    missing = run.unscored()
    if missing:
        raise DanqingError(
            f"{run.folder}: {len(missing)} shards have no scores yet (first: {missing[0].name}); finish `danqing score`"
        )
    scores = load(run, recipe)
    verdicts = walk(scores, recipe, device, progress)
    funnel = record(run, recipe, scores, verdicts, _decision(run, recipe))
    log.info("decided with recipe %s (%s): %d of %d kept", recipe.name, recipe.hash, funnel.kept, funnel.collected)
    return funnel


def _decision(run: Run, recipe: Recipe) -> dict[str, object]:
    decision: dict[str, object] = {"recipe": recipe.to_dict(), "recipe_hash": recipe.hash, "shards": len(run.shards)}
    references = check_references(run, recipe)
    return decision | {"references": references} if references else decision


def columns_of(recipe: Recipe) -> tuple[set[str], set[str]]:
    """The columns whose numbers the recipe looks at, and those that it only compares with themselves."""
    sought = [c for c in recipe.criteria if isinstance(c, Redundancy)]
    read = {c.column for c in recipe.criteria if isinstance(c, Criterion)} | {c.highest for c in sought if c.highest}
    return read, {c.column for c in sought} - {FEATURES}


def load(run: Run, recipe: Recipe) -> Scores:
    """Reads the columns that the recipe's criteria name, and maps the features."""
    read, compared = columns_of(recipe)
    names = sorted(read | compared)
    tables, blocks = [], []
    offset = 0
    for shard in run.shards:
        path = run.scores_path(shard.number)
        known = pq.read_schema(path).names
        absent = [name for name in names if name not in known]
        if absent:
            raise DanqingError(f"{path}: the run has no column {absent[0]!r}; score again with a recipe that names it")
        table = pq.read_table(path, columns=["uid", "error", "gated_at", "feature_row", *names])
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
        columns={name: table[name].cast(pa.float64()).to_numpy() for name in sorted(read)},
        compared={name: table[name] for name in sorted(compared)},
        shard_rows=[len(t) for t in tables],
    )


def load_reference(folder: Path, device: Device) -> tuple[np.ndarray, Features]:
    """A run's kept rows, or all of them where it has no verdicts: their uids, object (rows,), and features."""
    run = Run.open(folder)
    scores = load(run, replace(run.recipe, criteria=()))
    counts = scores.feature_row >= 0
    if "decided" in run.manifest:
        kept = [pq.read_table(run.verdicts_path(shard.number), columns=["keep"]) for shard in run.shards]
        counts &= pa.concat_tables(kept)["keep"].to_numpy()
    return scores.uid[counts], Features(device, scores.features, scores.feature_row[counts])


def walk(scores: Scores, recipe: Recipe, device: Device, progress: Progress | None = None) -> Verdicts:
    """Each row kept, or dropped by the first criterion it fails."""
    rows = len(scores.uid)
    verdicts = Verdicts(np.full(rows, -1), np.full(rows, -1), np.full(rows, None), np.full(rows, np.nan))
    alive = np.ones(rows, bool)
    for position, criterion in enumerate(recipe.criteria):
        scored = _scored(scores, criterion)
        _refuse_unscored(scores, alive & ~scored, criterion.name)
        looked_at = np.flatnonzero(alive & scored)
        if isinstance(criterion, Criterion):
            stay = looked_at[criterion.interval.holds(scores.columns[criterion.column][looked_at])]
        elif isinstance(criterion, Redundancy):
            if criterion.column == FEATURES:
                features = Features(device, scores.features, scores.feature_row[looked_at])
                chains, measured = find_chains(features, criterion, progress)
                verdicts.recall |= {position: measured} if measured else {}
                found = near_sets_among(scores, criterion, looked_at, features, chains, progress)
            else:
                found = equal_sets_among(scores, criterion, looked_at, device)
            stay = verdicts.enter_sets(scores, looked_at, *found)
        else:
            uid, others = load_reference(Path(criterion.folder), device)
            features = Features(device, scores.features, scores.feature_row[looked_at])
            stay = verdicts.enter_nearest(uid, looked_at, *nearest_rows(features, others, criterion.within, progress))
        holds = np.zeros(rows, bool)
        holds[stay] = True
        verdicts.dropped_by[alive & ~holds] = position
        alive = holds
    return verdicts


def _scored(scores: Scores, criterion: AnyCriterion) -> np.ndarray:
    """Boolean (rows,): which rows the criterion can judge."""
    if criterion.column == FEATURES:
        return scores.feature_row >= 0
    if isinstance(criterion, Criterion):
        return ~np.isnan(scores.columns[criterion.column])
    valid: np.ndarray = scores.compared[criterion.column].is_valid().to_numpy()
    return valid


def find_chains(
    features: Features, criterion: Redundancy, progress: Progress | None = None, earlier: np.ndarray | None = None
) -> tuple[np.ndarray, Recall | None]:
    """The rows' `sets.chains`, and, if not all near pairs need be found, what share of them was."""
    if criterion.recall == 1:
        return sets.chains(features, criterion.within, progress, earlier), None
    return sets.likely_chains(features, criterion.within, criterion.recall, progress, earlier)


Sets = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of some rows: the first of each one's set, who stays for it, and the distance to that one."""


def near_sets_among(
    scores: Scores,
    criterion: Redundancy,
    rows: np.ndarray,
    features: Features,
    chains: np.ndarray,
    progress: Progress | None = None,
) -> Sets:
    """Sets of near features.

    Args:
        features: of the rows. chains: see `find_chains`.
    """
    choose = sets.nearest_to_centroid(features) if criterion.keep == "centroid" else _choice(scores, criterion, rows)
    return sets.near_sets(features, criterion.within, choose, criterion.max_diameter, progress, chains)


def equal_sets_among(scores: Scores, criterion: Redundancy, rows: np.ndarray, device: Device) -> Sets:
    """Sets of equal values, or of hashes that differ in a few bits."""
    column = scores.compared[criterion.column].take(pa.array(rows)).combine_chunks()
    if criterion.within:
        values = column.to_numpy()
        group = fingerprints.group_hashes(device, values, int(criterion.within))
    else:
        values = column.dictionary_encode().indices.to_numpy()
        group = fingerprints.group_equal(values)
    stays = sets.representatives(group, np.arange(len(rows)), _choice(scores, criterion, rows))
    return group, stays, np.bitwise_count(values ^ values[stays]).astype(float)


def _choice(scores: Scores, criterion: Redundancy, rows: np.ndarray) -> sets.Choice:
    return sets.highest(scores.columns[criterion.highest][rows]) if criterion.highest else sets.first


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


def record(run: Run, recipe: Recipe, scores: Scores, verdicts: Verdicts, decision: dict[str, object]) -> Funnel:
    """Writes the verdicts, the funnel, and last of all, in the manifest, what was decided."""
    for phase in ("decided", "written"):
        run.manifest.pop(phase, None)  # until the last file is in, the run has no verdicts
    run.save()
    _write(run, recipe, scores, verdicts)
    funnel = Funnel.count(recipe, verdicts.dropped_by, verdicts.recall)
    write_json(run.folder / "funnel.json", funnel.to_dict())
    run.note("decided", **decision)
    return funnel


def _write(run: Run, recipe: Recipe, scores: Scores, verdicts: Verdicts) -> None:
    names = np.array([criterion.name for criterion in recipe.criteria] + [None], object)
    _, group = np.unique(verdicts.group, return_inverse=True)  # sets numbered 0, 1, …; -1 for rows that are alone
    group = group - 1 if (verdicts.group < 0).any() else group
    start = 0
    for shard, rows in zip(run.shards, scores.shard_rows, strict=True):
        part = slice(start, start + rows)
        start += rows
        identity = pq.read_table(run.scores_path(shard.number), columns=["shard", "row", "key", "uid"])
        table = (
            identity.append_column("keep", pa.array(verdicts.dropped_by[part] < 0))
            .append_column("dropped_by", pa.array(names[verdicts.dropped_by[part]], pa.string()))
            .append_column("group", pa.array(group[part], pa.int64()))
            .append_column("kept_instead", pa.array(verdicts.kept_instead[part], pa.string()))
            .append_column("distance", pa.array(verdicts.distance[part], mask=np.isnan(verdicts.distance[part])))
        )
        with commit(run.verdicts_path(shard.number)) as file:
            pq.write_table(table, file)
