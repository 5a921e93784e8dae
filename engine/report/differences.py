"""DIFF: compares two runs over the same input, made on different devices or with different engines or versions.

Runs are compared row by row. Scores of our kernels must be equal, or within a tolerance if they are floating-point
numbers. Features must have a high cosine. Scores of models may differ as long as few verdicts change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danqing.engine.core.errors import DanqingError
from danqing.engine.decide.feature_files import map_features
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import scores_table, verdicts_table
from danqing.engine.sources import Shard
from danqing.engine.stages import columns_of_role, stored_columns


@dataclass(frozen=True)
class Tolerance:
    """Limits within which two runs agree.

    Attributes:
        within: largest |a − b| ÷ max(1, |a|, |b|) of a score of our kernels.
        columns: column → its own limit, instead of `within`.
        cosine: smallest cosine of the two feature vectors of a pair.
        flips: largest share of pairs with another verdict, or in another group of near-duplicates.
    """

    within: float = 1e-4
    columns: Mapping[str, float] = field(default_factory=dict)
    cosine: float = 0.999
    flips: float = 0.001


@dataclass
class ColumnDifference:
    """Differences of one score.

    Attributes:
        name: the column.
        judged: whether the tolerance applies; False for scores of neural networks.
        exact: whether values must be equal; True unless they are floating-point numbers.
        rows: rows that have the score in both runs.
        one_sided: rows that have it in one run.
        unequal: rows in which the values differ.
        largest: largest difference, relative as in `Tolerance.within`; of exact values 0 or 1.
        worst: key of the row with the largest difference.
    """

    name: str
    judged: bool
    exact: bool
    rows: int = 0
    one_sided: int = 0
    unequal: int = 0
    largest: float = 0.0
    worst: str = ""

    def add(self, keys: pa.ChunkedArray, a: pa.ChunkedArray, b: pa.ChunkedArray) -> None:
        """Adds the rows of a shard: their keys, and the values in both runs."""
        both = pc.and_(pc.is_valid(a), pc.is_valid(b))
        self.one_sided += pc.sum(pc.xor(pc.is_valid(a), pc.is_valid(b))).as_py() or 0
        keys, a, b = keys.filter(both), a.filter(both), b.filter(both)
        self.rows += len(a)
        if self.exact:
            differences = pc.not_equal(a, b).to_numpy().astype(float)
        else:
            left, right = (side.to_numpy().astype(np.float64) for side in (a, b))
            differences = np.abs(left - right) / np.maximum(1.0, np.maximum(np.abs(left), np.abs(right)))
        self.unequal += int((differences != 0).sum())
        if len(differences) and differences.max() > self.largest:
            self.largest, self.worst = float(differences.max()), keys[int(differences.argmax())].as_py()


@dataclass
class Difference:
    """Differences of two runs.

    Attributes:
        tolerance: the limits.
        rows: rows compared.
        columns: score → its differences.
        cosine: smallest cosine of two feature vectors.
        cosines: sum of the cosines of `compared` pairs of vectors.
        flips: key, and the criterion that drops the row in each run (None: kept), of rows whose verdicts differ.
        regrouped: rows that are in another group of near-duplicates (`count_regrouped`).
        models: roles whose models differ, one line each.
    """

    tolerance: Tolerance
    rows: int = 0
    columns: dict[str, ColumnDifference] = field(default_factory=dict)
    cosine: float = 1.0
    cosines: float = 0.0
    compared: int = 0
    flips: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    regrouped: int = 0
    models: list[str] = field(default_factory=list)

    @property
    def objections(self) -> list[str]:
        """Describes the differences that exceed the tolerance, one line each."""
        allowed = self.tolerance
        out = [
            f"{c.name}: {c.unequal:,} of {c.rows:,} differ, most at {c.worst}"
            for c in self.columns.values()
            if c.judged and c.largest > (0 if c.exact else allowed.columns.get(c.name, allowed.within))
        ]
        if self.cosine < allowed.cosine:
            out.append(f"features: smallest cosine {self.cosine:.6f}, below {allowed.cosine}")
        for number, what in ((len(self.flips), "have another verdict"), (self.regrouped, "are in another group")):
            if number > allowed.flips * self.rows:
                out.append(f"{number:,} of {self.rows:,} pairs {what}, more than {allowed.flips:.2%}")
        return out


def diff(ours: Run, theirs: Run, tolerance: Tolerance | None = None) -> Difference:
    """Compares two decided runs.

    Args:
        ours, theirs: the runs, over the same input.
        tolerance: the limits; None: the defaults.

    Returns:
        The differences; `objections` lists those that exceed the tolerance.

    Raises:
        DanqingError: a run has no verdicts, or the runs have different inputs; names the first difference.
    """
    found = Difference(tolerance or Tolerance())
    for run in (ours, theirs):
        run.check_decided()
    names = [[shard.name for shard in run.shards] for run in (ours, theirs)]
    if names[0] != names[1]:
        raise DanqingError(f"{ours.folder} and {theirs.folder} have different shards: {_first_difference(*names)}")
    found.models = _different_models(ours.manifest["models"], theirs.manifest["models"])
    by_networks = _network_columns((ours, theirs))
    patterns = [{(c.name, c.definition): c.output.type for c in run.recipe.with_own_columns} for run in (ours, theirs)]
    columns = stored_columns() | {key[0]: patterns[0][key] for key in patterns[0].keys() & patterns[1].keys()}
    groups = Counter[tuple[int | None, int | None]]()
    for shard in ours.shards:
        _compare_shard(found, ours, theirs, shard, columns, by_networks)
        groups.update(_compare_verdicts(found, ours, theirs, shard.number))
    found.regrouped = count_regrouped(groups)
    return found


def _compare_shard(
    found: Difference, ours: Run, theirs: Run, shard: Shard, columns: dict[str, pa.DataType], by_networks: set[str]
) -> None:
    number = shard.number
    a, b = (scores_table(run, number) for run in (ours, theirs))
    uids = [table["uid"].to_pylist() for table in (a, b)]
    if uids[0] != uids[1]:
        raise DanqingError(f"shard {shard.name} holds other pairs in {theirs.folder}: {_first_difference(*uids)}")
    found.rows += len(a)
    for column, kind in columns.items():
        if column in a.column_names and column in b.column_names:
            exact = not pa.types.is_floating(kind)
            entry = found.columns.setdefault(column, ColumnDifference(column, column not in by_networks, exact))
            entry.add(a["key"], a[column], b[column])
    _compare_features(found, a["feature_row"].to_numpy(), b["feature_row"].to_numpy(), ours, theirs, number)


def _compare_verdicts(
    found: Difference, ours: Run, theirs: Run, number: int
) -> Iterator[tuple[int | None, int | None]]:
    """Adds the changed verdicts of a shard; returns the groups of each row in the two runs."""
    a, b = (verdicts_table(run, number, ["key", "dropped_by", "group"]) for run in (ours, theirs))
    for key, *outcome in zip(*(c.to_pylist() for c in (a["key"], a["dropped_by"], b["dropped_by"])), strict=True):
        if outcome[0] != outcome[1]:
            found.flips.append((key, *outcome))
    return zip(a["group"].to_pylist(), b["group"].to_pylist(), strict=True)


def count_regrouped(groups: Counter[tuple[int | None, int | None]]) -> int:
    """Counts the rows that are in another group in the second run, whatever the numbers of the groups.

    Groups of the two runs correspond, one to one: the pair that shares most rows first. Equal shares count in the order
    of the input.

    Args:
        groups: group in each run (None: no group) → number of rows.

    >>> count_regrouped(Counter({(0, 1): 3, (0, None): 1, (1, 2): 2, (None, 0): 2}))
    3
    """
    first, second, regrouped = set[int](), set[int](), 0
    for (a, b), rows in groups.most_common():
        if a is None or b is None or a in first or b in second:
            regrouped += rows if (a, b) != (None, None) else 0
        else:
            first.add(a)
            second.add(b)
    return regrouped


def _compare_features(
    found: Difference, rows_a: np.ndarray, rows_b: np.ndarray, ours: Run, theirs: Run, number: int
) -> None:
    both = (rows_a >= 0) & (rows_b >= 0)
    if not both.any():
        return
    blocks = (map_features(run.features_path(number)) for run in (ours, theirs))
    a, b = (block[rows[both]].astype(np.float64) for block, rows in zip(blocks, (rows_a, rows_b), strict=True))
    if a.shape != b.shape:
        raise DanqingError(f"features have {a.shape[1]} dimensions in {ours.folder}, {b.shape[1]} in {theirs.folder}")
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    found.cosine = min(found.cosine, float(cosines.min()))
    found.cosines += float(cosines.sum())
    found.compared += len(cosines)


def _different_models(ours: Mapping[str, Mapping[str, str]], theirs: Mapping[str, Mapping[str, str]]) -> list[str]:
    def shown(models: Mapping[str, Mapping[str, str]], role: str) -> str:
        return f"{models[role]['name']} (card {models[role]['card'][:8]})" if role in models else "none"

    roles = [role for role in dict.fromkeys([*ours, *theirs]) if ours.get(role) != theirs.get(role)]
    return [f"models.{role}: {shown(ours, role)} there, {shown(theirs, role)} here" for role in roles]


def _first_difference(ours: list[str], theirs: list[str]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} there, {len(theirs)} here"
    return next(f"{a} there, {b} here" for a, b in zip(ours, theirs, strict=True) if a != b)


def _network_columns(runs: Iterable[Run]) -> set[str]:
    """Lists the columns that depend on a neural network in one of the runs; a word list is not a network."""
    networks = {role for run in runs for role, model in run.manifest["models"].items() if "onnx" in model}
    return {column for role in networks for column in columns_of_role(role)}
