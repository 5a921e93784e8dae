"""CALIBRATE: measures which copies of a picture, and which other pictures, a near-duplicate criterion joins.

sample of a run's pictures → known edits → the run's own image model → distances to the original and among the pictures
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import COLUMNS, FEATURES, SHARD_COLUMNS
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import Progress
from danqing.engine.core.spans import Spans
from danqing.engine.decide.feature_files import map_features
from danqing.engine.decide.reference import DEFAULT_DISTANCE
from danqing.engine.decide.uids import numbers_of
from danqing.engine.recipe.criteria import Redundancy
from danqing.engine.recipe.plan import make_plan
from danqing.engine.recipe.reading import Recipe, recipe_from_dict
from danqing.engine.report.edits import EDITS, make_copies
from danqing.engine.report.joined import Bits, Copies, Cosine, Measure, Pairs, count_copies, count_pairs
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.run.tables import scores_table, verdicts_table
from danqing.engine.score.loop import batches_of, run_stages
from danqing.engine.sources import Sample
from danqing.engine.stages import CATALOGUE, Context
from danqing.engine.stages.decode import decode_with_pillow
from danqing.engine.write.order import open_scored
from danqing.engine.write.output import max_pixels
from danqing.trt_models.model_set import ModelSet

ROLE = "image_embedding"


@dataclass(frozen=True)
class Calibration:
    """Copies and pairs that one criterion joins.

    Attributes:
        criterion: its name in the run's recipe; empty if the recipe has none that compares features.
        column: what is compared.
        chosen: the recipe's `within`.
        within: the values tried, in ascending order.
        copies: by kind, then all.
        grouped: pairs that the run has joined, directly or by a chain of others; `shown`: the farthest of them.
        others: all other pairs; `shown`: the nearest of them.
    """

    criterion: str
    column: str
    chosen: float | None
    within: tuple[float, ...]
    copies: tuple[Copies, ...]
    grouped: Pairs
    others: Pairs


@dataclass(frozen=True)
class Calibrations:
    """The result.

    Attributes:
        model: name of the image model.
        pictures: number of pictures compared.
        drift: largest cosine distance between the features of a picture now and those that the run stores.
        criteria: one for features, one for each criterion of the recipe that compares perceptual hashes.
    """

    model: str
    pictures: int
    drift: float
    criteria: tuple[Calibration, ...]


def decided_recipe(run: Run) -> Recipe:
    """The recipe of a run's verdicts.

    Raises:
        DanqingError: no verdicts.
    """
    run.check_decided()
    return recipe_from_dict(run.manifest["decided"]["recipe"], "run.json")


def calibration_recipe(run: Run, within: Sequence[float] = ()) -> Recipe:
    """The criteria of a decided run's recipe that compare what pictures show, with the one of features first.

    Args:
        run: a decided run.
        within: cosine distances to try, only checked here.

    Raises:
        DanqingError: no verdicts, no image model, another model than the one that scored, or a wrong distance.
    """
    recipe = decided_recipe(run)
    if ROLE not in recipe.models:
        raise DanqingError(f"{run.folder}: its recipe names no model for {ROLE}, so there are no features to compare")
    for value in within:
        if not 0 < value < 2:
            raise DanqingError(f"--within {value:g}: a cosine distance between 0 and 2, for example {DEFAULT_DISTANCE}")
    models = {ROLE: recipe.models[ROLE]}
    if ModelSet(models).hashes()[ROLE] != run.manifest["models"].get(ROLE):
        raise DanqingError(f"{run.folder}: the model {models[ROLE]} was changed since the run was scored; score again")
    features = recipe.near_duplicates[:1] or (Redundancy("", DEFAULT_DISTANCE),)
    criteria = (*features, *(criterion for criterion in _of_pictures(recipe) if criterion.column != FEATURES))
    return Recipe("calibration", models, tuple(replace(c, keep="first") for c in criteria))  # no column to choose by


def _of_pictures(recipe: Recipe) -> list[Redundancy]:
    """The group criteria that compare what pictures show."""
    found = (c for c in recipe.criteria if isinstance(c, Redundancy) and c.column in COLUMNS)
    return [c for c in found if COLUMNS[c.column].distance in ("cosine", "bits")]


def calibrate(
    run: Run, device: Device, progress: Progress, sample: int, seed: int = 0, within: Sequence[float] = ()
) -> Calibrations:
    """Compares copies and pictures of a run by its own image model.

    The pictures are those that reached the first criterion that compares pictures, each distinct file once.

    Args:
        run: a decided run, whose input is where it was.
        device: runs the stages.
        progress: receives the number of pictures and copies.
        sample: number of pictures.
        seed: of the choice of pictures.
        within: cosine distances to try; empty: some around the recipe's.

    Returns:
        The shares of copies and of pairs that are joined; the same for the same input, seed and device.

    Raises:
        DanqingError: see `calibration_recipe`; or the input is missing or changed, or has too few pictures.
    """
    recipe = calibration_recipe(run, within)
    drawn = draw_pictures(run, sample, seed)
    progress.expect(len(drawn) * (1 + len(EDITS)), 0)
    found = _Vectors(recipe, progress)
    if len(drawn):
        found.compute(run, device, drawn)
    pictures = np.array([number for number in range(len(drawn)) if (number, 0) in found.rows], np.int64)
    if len(pictures) < 2:
        raise DanqingError(f"{run.folder}: {len(pictures)} pictures reach the search for near-duplicates; 2 are needed")
    drawn = drawn.take(pa.array(pictures))
    criteria = []
    for criterion in recipe.criteria:
        assert isinstance(criterion, Redundancy)
        measure = Cosine(within) if criterion.column == FEATURES else Bits()
        criteria.append(_calibrated(criterion, decided_recipe(run), measure, found, pictures, drawn))
    drift = _drift(run, drawn, found.of(FEATURES, pictures, 0))
    return Calibrations(recipe.models[ROLE], len(pictures), drift, tuple(criteria))


def draw_pictures(run: Run, sample: int, seed: int) -> pa.Table:
    """Draws pictures of a decided run: the files whose hashes, XORed with a number made from the seed, are smallest.

    Returns:
        In input order: `number` of the shard, `shard`, `row`, `key`, `uid`, `image_hash`, `feature_row`, `dropped_by`
        and `kept_instead`.
    """
    recipe = decided_recipe(run)
    of_pictures = _of_pictures(recipe)
    earlier = _names_before(recipe, of_pictures[0].name) if of_pictures else []
    mask = np.random.default_rng(seed).integers(2**64, dtype=np.uint64, size=1)
    chosen: list[pa.Table] = []
    for shard in run.shards:
        table = scores_table(run, shard.number, ["shard", "row", "key", "uid", "image_hash", "feature_row"])
        verdicts = verdicts_table(run, shard.number, ["dropped_by", "kept_instead"])
        for name in verdicts.column_names:
            table = table.append_column(name, verdicts[name])
        table = table.append_column("number", pa.array(np.full(len(table), shard.number)))
        table = table.filter(pc.and_not(pc.greater_equal(table["feature_row"], 0), _is_dropped_by(table, earlier)))
        table = pa.concat_tables([*chosen, table])
        _, first = np.unique(numbers_of(table["image_hash"])[:, 0] ^ mask, return_index=True)
        chosen = [table.take(pa.array(first[:sample]))]
    return pa.concat_tables(chosen).sort_by([("number", "ascending"), ("row", "ascending")])


def _names_before(recipe: Recipe, name: str) -> list[str]:
    """The names of the criteria before a criterion."""
    names = [criterion.name for criterion in recipe.criteria]
    return names[: names.index(name)]


def _is_dropped_by(table: pa.Table, names: list[str]) -> pa.ChunkedArray:
    return pc.is_in(table["dropped_by"], pa.array(names, pa.string()))


class _Vectors:
    """Features and hashes of pictures and their copies. Receives the rows that leave the stages.

    Attributes:
        rows: (picture, 0) or (picture, 1 + number of the edit) → its columns.
    """

    def __init__(self, recipe: Recipe, progress: Progress) -> None:
        self.recipe, self.progress = recipe, progress
        self.columns = list(dict.fromkeys(column for criterion in recipe.criteria for column in criterion.columns))
        self.rows: dict[tuple[int, int], dict[str, Any]] = {}
        self._places: list[tuple[int, int]] = []

    def compute(self, run: Run, device: Device, drawn: pa.Table) -> None:
        """Runs the stages on the pictures and on their copies."""
        plan = make_plan(self.recipe, CATALOGUE, SHARD_COLUMNS)
        used = run.manifest.get("resizers", ())
        resizer = used[0] if used and device.kind == "cuda" else "auto"  # DALI may be missing on a machine without GPU
        settings = Settings(max_pixels=max_pixels(run), resizer=resizer)
        context = settings.context(device, ModelSet(self.recipe.models), plan.wanted)
        batches = batches_of(run.shards[0], self._samples(run, context, drawn), context.memory)
        run_stages(batches, plan, context, self, Spans(), gated=False)

    def _samples(self, run: Run, context: Context, drawn: pa.Table) -> Iterator[Sample]:
        """Yields each picture and its copies; notes in `_places` what each row is."""
        originals, numbers = _read(run, drawn), count()

        def edited(image: bytes) -> list[bytes | None]:
            pixels = decode_with_pillow(image, context.max_pixels)
            return [None] * len(EDITS) if isinstance(pixels, str) else make_copies(pixels)

        while images := list(islice(originals, context.device.threads)):
            for image, copies in zip(images, context.device.map(edited, images), strict=True):
                number = next(numbers)
                for edit, data in enumerate([image, *copies]):
                    if data is None:
                        self.progress.advance(1)
                        continue
                    self._places.append((number, edit))
                    yield Sample(str(len(self._places)), data, "jpg", "")

    def enter(self, batch: Batch, gated_at: str | None = None) -> None:
        """Takes rows that leave the stages; see `engine.score.loop.RowSink`."""
        for position, row in enumerate(batch["row"].tolist()):
            if batch["error"][position] is None:
                self.rows[self._places[row]] = {name: batch[name][position] for name in self.columns}
        self.progress.advance(len(batch))

    def of(self, column: str, pictures: np.ndarray, edit: int) -> np.ndarray:
        """The values of a column, of pictures (`edit` 0) or of their copies by an edit, which all of them have."""
        return np.array([self.rows[number, edit][column] for number in pictures.tolist()])

    def having(self, pictures: np.ndarray, edit: int) -> np.ndarray:
        """Boolean (pictures,): whether each has a copy by an edit."""
        return np.array([(number, edit) in self.rows for number in pictures.tolist()], bool)


def _read(run: Run, drawn: pa.Table) -> Iterator[bytes]:
    """Yields the encoded pictures, in input order.

    Raises:
        DanqingError: the input is missing or was changed since it was scored.
    """
    for number in drawn["number"].unique().to_pylist():
        shard = run.shards[number]
        here = drawn.filter(pc.equal(drawn["number"], number))
        wanted = dict(zip(here["row"].to_pylist(), here["image_hash"].to_pylist(), strict=True))
        rows = len(scores_table(run, number, ["row"]))
        for row, sample in enumerate(open_scored(shard, run.layout, rows)):
            if row in wanted:
                if sample.image_hash != wanted.pop(row):
                    raise DanqingError(f"{shard.path}: row {row} ({sample.key}) was changed since it was scored")
                yield sample.image
            if not wanted:
                break


def _calibrated(
    criterion: Redundancy, recipe: Recipe, measure: Measure, found: _Vectors, pictures: np.ndarray, drawn: pa.Table
) -> Calibration:
    """Counts what a criterion joins: of all pictures the copies, and the pairs of those that reached the criterion.

    The run has joined two pictures if criteria that compare the same column have kept one picture instead of both, or
    one instead of the other.
    """
    within = measure.tried(criterion.within)
    originals = measure.prepare(found.of(criterion.column, pictures, 0))
    distances = {}
    for edit, kind in enumerate(EDITS, 1):
        having = found.having(pictures, edit)
        copies = found.of(criterion.column, pictures[having], edit)
        distances[kind] = measure.between(originals[having], measure.prepare(copies)) if having.any() else np.empty(0)
    counted = count_copies(distances, measure, within)
    earlier = _names_before(recipe, criterion.name) if criterion.name else []
    reached = pc.invert(_is_dropped_by(drawn, earlier)).to_numpy()
    drawn = drawn.filter(pa.array(reached))
    same = [other.name for other in _of_pictures(recipe) if other.column == criterion.column]
    kept = pc.if_else(_is_dropped_by(drawn, same), drawn["kept_instead"], drawn["uid"]).combine_chunks()
    group = kept.dictionary_encode().indices.to_numpy()
    names = [f"{shard} {key}" for shard, key in zip(drawn["shard"].to_pylist(), drawn["key"].to_pylist(), strict=True)]
    grouped, others = count_pairs(originals[reached], names, group, measure, within)
    chosen = criterion.within if criterion.name else None
    return Calibration(criterion.name, criterion.column, chosen, within, counted, grouped, others)


def _drift(run: Run, drawn: pa.Table, features: np.ndarray) -> float:
    """The largest cosine distance between features and those that the run stores for the same pictures."""
    numbers = drawn["number"].to_pylist()
    stored = {number: map_features(run.features_path(number)) for number in numbers}
    before = [stored[number][row] for number, row in zip(numbers, drawn["feature_row"].to_pylist(), strict=True)]
    measure = Cosine()
    return float(measure.between(measure.prepare(np.array(before)), measure.prepare(features)).max())
