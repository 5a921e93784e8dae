"""Metrics beside scikit-learn's, with and without weights and equal scores; intervals of differences."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score, top_k_accuracy_score

from danqing.engine.evaluate.metrics import Outcomes, differences, metrics_of, ranks, values_of

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 6, 300)
SCORES = (RNG.normal(size=(300, 6)) + 1.2 * (LABELS[:, None] == np.arange(6))).round(1).astype(np.float32)
"""Rounded, so that there are equal scores."""
WEIGHTS = RNG.integers(0, 4, 300).astype(float)
SINGLE = Outcomes(6, {"labels": LABELS, "ranks": ranks(SCORES, LABELS)})


def metric(name: str, found: Outcomes, weights: np.ndarray) -> float:
    return metrics_of(found)[name](weights)


@pytest.mark.parametrize("weights", [np.ones(300), WEIGHTS])
def test_classification(weights: np.ndarray) -> None:
    distinct = SCORES - np.arange(6) * 1e-4  # equal scores in the order of the classes
    for k in (1, 5):
        expected = top_k_accuracy_score(LABELS, distinct, k=k, sample_weight=weights)
        assert metric(f"acc{k}", SINGLE, weights) == pytest.approx(expected)
    expected = balanced_accuracy_score(LABELS, distinct.argmax(1), sample_weight=weights)
    assert metric("mean_per_class_recall", SINGLE, weights) == pytest.approx(expected)


@pytest.mark.parametrize("weights", [np.ones(300), WEIGHTS])
def test_precision_and_area(weights: np.ndarray) -> None:
    targets = RNG.random((300, 6)) < 0.2
    targets[:, 5] = False  # a class without a picture is left out
    found = Outcomes(6, {"targets": targets, "scores": SCORES})
    expected = [average_precision_score(targets[:, k], SCORES[:, k], sample_weight=weights) for k in range(5)]
    assert metric("mean_average_precision", found, weights) == pytest.approx(np.mean(expected))
    two = Outcomes(2, {"labels": targets[:, 0].astype(int), "ranks": LABELS, "scores": SCORES[:, :2]})
    expected_area = roc_auc_score(targets[:, 0], SCORES[:, 1] - SCORES[:, 0], sample_weight=weights)
    assert metric("roc_auc", two, weights) == pytest.approx(expected_area)


def test_eleven_points() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])[:, None]  # precision 1, 1/2, 2/3, 1/2, 3/5 at recall 1/3, …, 1
    found = Outcomes(1, {"targets": np.array([1, 0, 1, 0, 1], bool)[:, None], "scores": scores})
    expected = (4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11
    assert metric("mean_average_precision_11_point", found, np.ones(5)) == pytest.approx(expected)


def test_retrieval() -> None:
    found = Outcomes(0, {
        "picture_ranks": np.array([0, 4, -1]),  # the last picture has no text
        "text_ranks": np.array([0, 9, 10]),
        "text_picture": np.array([0, 0, 1]),
    })  # fmt: skip
    values = values_of(found)
    assert [values[f"image_retrieval_recall@{k}"] for k in (1, 5, 10)] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert [values[f"text_retrieval_recall@{k}"] for k in (1, 5, 10)] == [0.5, 1, 1]
    assert values["mean_recall"] == pytest.approx((4 / 3 + 2.5) / 6)
    weights = np.array([2.0, 0, 1])  # a text counts as often as its picture
    assert metric("image_retrieval_recall@1", found, weights) == 0.5
    assert metric("text_retrieval_recall@1", found, weights) == 1


def test_a_model_without_a_difference_between_classes_is_no_better_than_chance() -> None:
    labels = np.repeat(np.arange(10), 5)
    found = Outcomes(10, {"labels": labels, "ranks": ranks(np.zeros((50, 10), np.float32), labels)})
    assert values_of(found)["acc1"] == pytest.approx(0.1)


def test_a_model_that_returns_no_numbers_finds_nothing() -> None:
    assert ranks(np.full((2, 3), np.nan, np.float32), np.array([0, 2])).tolist() == [3, 3]


def test_metrics_apply_to_what_they_are_defined_for() -> None:
    assert [*metrics_of(SINGLE)] == ["acc1", "acc5", "mean_per_class_recall"]
    few = Outcomes(3, {"labels": LABELS % 3, "ranks": LABELS})
    assert "acc5" not in values_of(few)


def test_a_metric_that_the_pictures_do_not_define_is_left_out() -> None:
    one_class = Outcomes(2, {"labels": np.zeros(4, int), "ranks": np.zeros(4, int), "scores": SCORES[:4, :2]})
    assert values_of(one_class) == {"acc1": 1, "mean_per_class_recall": 1}
    assert set(differences(one_class, one_class)) == {"acc1", "mean_per_class_recall"}


def test_an_interval_holds_the_difference() -> None:
    """1,000 pictures, .8 against .7: the standard error of a paired difference with independent hits is .019."""
    labels = np.zeros(1000, np.int64)
    better, worse = (
        Outcomes(2, {"labels": labels, "ranks": (RNG.random(1000) > share).astype(int)}) for share in (0.8, 0.7)
    )
    found = differences(better, worse)["acc1"]
    assert found.low < found.difference < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.0192, rel=0.15)
    assert found == differences(better, worse)["acc1"]  # the seed is fixed
    same = differences(better, better)["acc1"]
    assert (same.difference, same.low, same.high) == (0, 0, 0)
