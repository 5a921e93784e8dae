"""What was measured: rows with named metrics, their comparison, and evaluation.json."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import read_json, write_json
from danqing.engine.evaluate import metrics, tables
from danqing.engine.evaluate.metrics import Interval, Outcomes

Differences = Mapping[str, Mapping[str, Interval]]
"""Data set → metric → what a model has more than the reference."""


@dataclass(frozen=True)
class Row:
    """What one model does on one data set: a row of clip-benchmark's results.

    Attributes:
        dataset: name of the data set.
        model: name of the model.
        task: `zeroshot_classification` or `zeroshot_retrieval`.
        language: of the classes or texts, `zh` or `en`.
        metrics: name → value from 0 to 1.
        pictures, texts: how many were compared; for classification, the classes.
        broken: ids of the pictures that do not decode and are in no metric.
        content: hash of the pictures' ids and what is right for them: two rows with equal ones can be compared.
        outcomes: what the metrics are made of.
    """

    dataset: str
    model: str
    task: str
    language: str
    metrics: dict[str, float]
    pictures: int
    texts: int
    broken: tuple[str, ...]
    content: str
    outcomes: Outcomes = field(repr=False)

    def to_dict(self, outcomes: bool = True) -> dict[str, Any]:
        """Returns the row as JSON, with clip-benchmark's keys; `outcomes` of the pictures are what `against` needs."""
        names = ("dataset", "model", "task", "metrics", "language", "pictures", "texts")
        shown = {name: getattr(self, name) for name in names} | {"undecodable": len(self.broken)}
        if not outcomes:
            return shown
        arrays = {name: _packed(array) for name, array in self.outcomes.arrays.items()}
        kept = {"classes": self.outcomes.classes, "arrays": arrays}
        return shown | {"broken": list(self.broken), "content": self.content, "outcomes": kept}


@dataclass(frozen=True)
class Evaluation:
    """One model on a suite.

    Attributes:
        model: its name.
        rows: of the suite's data sets.
    """

    model: str
    rows: tuple[Row, ...]

    @property
    def averages(self) -> list[tables.Average]:
        """The paper's averages."""
        return tables.averages((row.dataset, row.metrics) for row in self.rows)

    def row(self, dataset: str) -> Row | None:
        """Returns the row of a data set, None if there is none."""
        return next((row for row in self.rows if row.dataset == dataset), None)

    def against(self, reference: Evaluation) -> Differences:
        """Compares with another model, on every data set that both have.

        Returns:
            Data set → metric → the difference, this model minus the reference.

        Raises:
            DanqingError: no data set in common, or other pictures in one of the same name.
        """
        pairs = [(row, other) for row in self.rows if (other := reference.row(row.dataset))]
        if not pairs:
            raise DanqingError(
                f"{reference.model} was evaluated on {_names(reference.rows)}, {self.model} on {_names(self.rows)}: "
                "nothing to compare; give an evaluation of the same suite"
            )
        for row, other in pairs:
            if row.content != other.content:
                raise DanqingError(
                    f"{row.dataset}: {reference.model} was evaluated on other pictures or texts; evaluate it again "
                    "on this suite, with the same --limit"
                )
        return {row.dataset: metrics.differences(row.outcomes, other.outcomes) for row, other in pairs}


def _names(rows: Iterable[Row]) -> str:
    return ", ".join(row.dataset for row in rows) or "nothing"


@dataclass(frozen=True)
class Comparison:
    """Models compared with one of them, or with one that was evaluated earlier.

    Attributes:
        reference: what they are compared with; None if there is nothing to compare.
        differences: of each model, None of the reference itself.
    """

    reference: Evaluation | None
    differences: tuple[Differences | None, ...]

    @property
    def largest_drop(self) -> tuple[float, str]:
        """By how much the metric that fell most has fallen, 0 if none has, and `DATA SET METRIC`."""
        drops = [
            (-interval.difference, f"{dataset} {metric}")
            for found in self.differences
            if found is not None
            for dataset, intervals in found.items()
            for metric, interval in intervals.items()
            if not np.isnan(interval.difference)
        ]
        return max([(0.0, "no metric"), *drops], key=lambda drop: drop[0])

    def to_dicts(self, found: Iterable[Evaluation]) -> list[dict[str, Any]]:
        """Returns the differences as JSON, an object for each metric."""
        return [
            {"dataset": dataset, "model": evaluation.model, "metric": metric, **asdict(interval)}
            for evaluation, differences in zip(found, self.differences, strict=True)
            for dataset, intervals in (differences or {}).items()
            for metric, interval in intervals.items()
        ]


def compare(found: Sequence[Evaluation], reference: Evaluation | None = None) -> Comparison:
    """Compares models with a reference, or with the first of several.

    Raises:
        DanqingError: see `Evaluation.against`.
    """
    reference = reference or (found[0] if len(found) > 1 else None)
    # By identity: Python cannot compare evaluations of equal metrics, since their outcomes are arrays.
    differences = (one.against(reference) if reference and reference is not one else None for one in found)
    return Comparison(reference, tuple(differences))


def _packed(array: np.ndarray) -> str:
    """Returns an array as text: .npy, compressed, in base64."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode()


def _unpacked(text: str) -> np.ndarray:
    return np.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), allow_pickle=False)


def write_evaluations(path: Path, found: Iterable[Evaluation]) -> None:
    """Writes evaluation.json: `rows` with clip-benchmark's keys, and `averages`."""
    found = list(found)
    rows = [row.to_dict() for evaluation in found for row in evaluation.rows]
    write_json(path, {"rows": rows, "averages": [*averages_of(found)]})


def averages_of(found: Iterable[Evaluation]) -> Iterator[dict[str, Any]]:
    """Yields the paper's averages of each model as JSON."""
    for evaluation in found:
        for average in evaluation.averages:
            yield {"model": evaluation.model, "average": average.title, "value": average.value,
                   "missing": list(average.missing), "paper": dict(average.figures)}  # fmt: skip


def read_evaluation(path: Path) -> Evaluation:
    """Reads the first model of an evaluation.json.

    Returns:
        The evaluation; the file's name follows that of the model, which can be evaluated again beside it.

    Raises:
        DanqingError: the file is missing or is no evaluation.json with outcomes.
    """
    again = "write it with `danqing evaluate MODEL --suite SUITE -o FILE`"
    content = read_json(path, again)
    try:
        rows = [_read_row(row) for row in content["rows"]]
        model = rows[0].model
        return Evaluation(f"{model} in {path.name}", tuple(row for row in rows if row.model == model))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, zlib.error) as problem:
        raise DanqingError(f"{path}: is no evaluation with its outcomes ({problem!r}); {again}") from None


def _read_row(row: dict[str, Any]) -> Row:
    for name, value in row["metrics"].items():
        if not isinstance(value, (int, float)):
            raise TypeError(f"the metric {name} is {value!r}")
    kept = row["outcomes"]
    outcomes = Outcomes(kept["classes"], {name: _unpacked(text) for name, text in kept["arrays"].items()})
    values = {field.name: row[field.name] for field in fields(Row)}
    return Row(**values | {"broken": tuple(row["broken"]), "outcomes": outcomes})
