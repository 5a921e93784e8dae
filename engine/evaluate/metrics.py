"""Metrics by name, each of what was found for a data set's pictures, and paired intervals of their differences.

A metric is a function of weights, one per picture: ones give its value, the counts of a resample one draw of its
bootstrap distribution.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

Weighed = Callable[[np.ndarray], float]
"""Weights of the pictures, float64 (n,) → the metric."""

BOOTSTRAP_SAMPLES, SEED, COVERAGE = 1000, 0, 0.95


@dataclass(frozen=True)
class Outcomes:
    """What was found for the pictures of a data set, in their order.

    Attributes:
        classes: number of classes; 0 for retrieval.
        arrays: by name, n pictures. Classification: `labels` int (n,) and `ranks` int (n,), classes before the right
            one; of several labels a picture instead `targets` bool (n, classes). With `targets`, of two classes, and
            where precision is wanted also `scores` float32 (n, classes), cosines. Retrieval: `picture_ranks` int (n,),
            texts before the first right one, -1 for a picture without a text; `text_ranks` int (texts,), pictures
            before the first right one; `text_picture` int (texts,), a right picture.
    """

    classes: int
    arrays: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __len__(self) -> int:
        return len(self.arrays[next(name for name in ("labels", "targets", "picture_ranks") if name in self.arrays)])

    def has(self, *names: str) -> bool:
        """Returns whether there are outcomes of all the names."""
        return self.arrays.keys() >= set(names)


Metric = Callable[[Outcomes], Weighed | None]
"""Prepares a metric for outcomes; None where it is not defined."""


def ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Counts what comes before the right one of each row: higher scores, and equal ones further to the left.

    Equal scores are in the order of the gallery, as a stable sort has them, so that a model that finds everything
    equal is as good as chance. What is not a number comes first: a model that returns none finds nothing.

    Args:
        scores: float (rows, gallery).
        right: int (rows,), place of the right one.

    Returns:
        int64 (rows,).
    """
    best = np.take_along_axis(scores, right[:, None], axis=1)
    before = np.arange(scores.shape[1]) < right[:, None]
    return (~(scores <= best) | ((scores == best) & before)).sum(axis=1)


def _share(ranks: str, k: int, of_text: str = "", min_classes: int = 0) -> Metric:
    """The share of queries with a rank below k; queries without an answer (rank -1) do not count."""

    def prepare(found: Outcomes) -> Weighed | None:
        if not found.has(ranks) or found.classes < min_classes:
            return None
        counted = found[ranks] >= 0
        hit = (found[ranks] < k) & counted
        picture = found[of_text] if of_text else slice(None)

        def share(weights: np.ndarray) -> float:
            weights = weights[picture] * counted
            return float(weights @ hit / weights.sum()) if weights.any() else float("nan")

        return share

    return prepare


def _per_class(found: Outcomes) -> Weighed | None:
    if not found.has("labels"):
        return None
    labels, hit = found["labels"], found["ranks"] == 0

    def recall(weights: np.ndarray) -> float:
        total = np.bincount(labels, weights)
        right = np.bincount(labels, weights * hit)
        return float((right[total > 0] / total[total > 0]).mean())

    return recall


def _mean(parts: Iterable[Metric]) -> Metric:
    def prepare(found: Outcomes) -> Weighed | None:
        prepared = [metric for part in parts if (metric := part(found))]
        return (lambda weights: float(np.mean([metric(weights) for metric in prepared]))) if prepared else None

    return prepare


class _Curve:
    """True and false positives of one class above each of its scores.

    Args:
        scores: float (n,).
        right: bool (n,).
    """

    def __init__(self, scores: np.ndarray, right: np.ndarray) -> None:
        self.order = np.argsort(-scores, kind="stable")
        in_order = scores[self.order]
        self.ends = np.append(np.flatnonzero(np.diff(in_order)), len(in_order) - 1)  # of each run of equal scores
        self.right = right[self.order]

    def counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the weight of true and of all positives above each distinct score."""
        ordered = weights[self.order]
        return np.cumsum(ordered * self.right)[self.ends], np.cumsum(ordered)[self.ends]


def _average_precision(curve: _Curve, weights: np.ndarray) -> float:
    """Sum of the precisions, each times the recall it adds (scikit-learn's `average_precision_score`)."""
    true, positive = curve.counts(weights)
    if not true[-1]:
        return float("nan")
    return float((np.diff(true, prepend=0) * true / np.maximum(positive, 1e-300)).sum() / true[-1])


def _interpolated_precision(curve: _Curve, weights: np.ndarray) -> float:
    """Mean over the recalls 0, 0.1, …, 1 of the highest precision at that recall or more (PASCAL VOC until 2009)."""
    true, positive = curve.counts(weights)
    if not true[-1]:
        return float("nan")
    best = np.maximum.accumulate((true / np.maximum(positive, 1e-300))[::-1])[::-1]
    return float(best[np.searchsorted(true / true[-1], np.linspace(0, 1, 11) - 1e-9)].mean())


def _area(curve: _Curve, weights: np.ndarray) -> float:
    """Area under true over false positive rate, by trapezoids."""
    true, positive = curve.counts(weights)
    false = positive - true
    if not (true[-1] and false[-1]):
        return float("nan")
    heights = np.append(0, true[:-1]) + true
    return float((np.diff(false, prepend=0) * heights).sum() / 2 / (true[-1] * false[-1]))


def _over_classes(of_class: Callable[[_Curve, np.ndarray], float], found: Outcomes) -> Weighed:
    """Mean over the classes that have a right picture."""
    targets = found["targets"] if found.has("targets") else found["labels"][:, None] == np.arange(found.classes)
    curves = [_Curve(found["scores"][:, k], targets[:, k]) for k in np.flatnonzero(targets.any(axis=0))]
    return lambda weights: float(np.nanmean([of_class(curve, weights) for curve in curves]))


def _precision(found: Outcomes) -> Weighed | None:
    return _over_classes(_average_precision, found) if found.has("targets", "scores") else None


def _eleven_points(found: Outcomes) -> Weighed | None:
    defined = found.has("scores") and found.classes != 2
    return _over_classes(_interpolated_precision, found) if defined else None


def _area_of_two(found: Outcomes) -> Weighed | None:
    if not found.has("labels", "scores") or found.classes != 2:
        return None
    curve = _Curve(found["scores"][:, 1] - found["scores"][:, 0], found["labels"] == 1)
    return lambda weights: _area(curve, weights)


CUTOFFS = (1, 5, 10)
_T2I = {k: _share("text_ranks", k, "text_picture") for k in CUTOFFS}
_I2T = {k: _share("picture_ranks", k) for k in CUTOFFS}
ELEVEN_POINTS = "mean_average_precision_11_point"

METRICS: dict[str, Metric] = {
    "acc1": _share("ranks", 1),
    "acc5": _share("ranks", 5, min_classes=5),
    "mean_per_class_recall": _per_class,
    "roc_auc": _area_of_two,
    "mean_average_precision": _precision,
    ELEVEN_POINTS: _eleven_points,
    **{f"image_retrieval_recall@{k}": metric for k, metric in _T2I.items()},
    **{f"text_retrieval_recall@{k}": metric for k, metric in _I2T.items()},
    "image_retrieval_mean_recall": _mean(_T2I.values()),
    "text_retrieval_mean_recall": _mean(_I2T.values()),
    "mean_recall": _mean((*_T2I.values(), *_I2T.values())),
}
"""Every metric by its key in evaluation.json, which is clip-benchmark's where that has one, in the order of the tables;
docs/evaluation.md says who defines it so. Images are retrieved by texts (T2I), texts by images (I2T)."""


def metrics_of(found: Outcomes) -> dict[str, Weighed]:
    """Returns the metrics that are defined for outcomes."""
    return {name: prepared for name, metric in METRICS.items() if (prepared := metric(found))}


def values_of(found: Outcomes) -> dict[str, float]:
    """Returns every metric that is defined for these pictures: name → value from 0 to 1."""
    values = {name: metric(np.ones(len(found))) for name, metric in metrics_of(found).items()}
    return {name: value for name, value in values.items() if not np.isnan(value)}  # an area needs both classes


@dataclass(frozen=True)
class Interval:
    """A difference, and the interval that holds it in `COVERAGE` of the resamples.

    Attributes:
        difference: of the metric, the model minus the reference.
        low, high: ends of the interval.
    """

    difference: float
    low: float
    high: float


def differences(found: Outcomes, reference: Outcomes) -> dict[str, Interval]:
    """Compares two models on the same pictures by a paired bootstrap (Efron & Tibshirani 1993, percentile interval).

    Pictures are drawn with replacement, the same for both models; the texts of a picture come with it. The seed is
    fixed, so that the same outcomes have the same interval.

    Args:
        found: of the model.
        reference: of the model that it is compared with; the same pictures in the same order.

    Returns:
        Metric → its interval.
    """
    defined, others = values_of(found), metrics_of(reference)
    pairs = {name: (metric, others[name]) for name, metric in metrics_of(found).items() if name in defined}
    n, generator = len(found), np.random.default_rng(SEED)

    def measure(weights: np.ndarray) -> list[float]:
        return [model(weights) - other(weights) for model, other in pairs.values()]

    drawn = (np.bincount(generator.integers(0, n, n), minlength=n).astype(float) for _ in range(BOOTSTRAP_SAMPLES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of resamples without a picture of any class
        resampled = np.array([measure(weights) for weights in drawn])
    ends = np.nanquantile(resampled, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0).T
    values = measure(np.ones(n))
    return {name: Interval(value, *map(float, pair)) for name, value, pair in zip(pairs, values, ends, strict=True)}
