from __future__ import annotations

import numpy as np
import pytest

from danqing.engine.recipe.criteria import Interval, Redundancy, Threshold


def test_bounds_include_or_exclude_their_value() -> None:
    scores = np.array([0.9, 1.0, 2.0, 3.0, 3.1, np.nan])
    assert Interval(minimum=1, maximum=3).holds(scores).tolist() == [False, True, True, True, False, False]
    assert Interval(above=1, below=3).holds(scores).tolist() == [False, False, True, False, False, False]
    assert Interval(minimum=1).holds(scores).tolist() == [False, True, True, True, True, False]


@pytest.mark.parametrize(
    "bounds",
    [
        {},
        {"minimum": 3, "maximum": 2},
        {"above": 2, "maximum": 2},
        {"minimum": 1, "above": 1},
        {"maximum": 1, "below": 1},
        {"minimum": float("nan")},
    ],
)
def test_impossible_intervals_are_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Interval(**bounds)


def test_rules_are_written_as_mathematics() -> None:
    assert Threshold("words", "words", Interval(minimum=5, maximum=60)).rule == "5 ≤ words ≤ 60"
    assert Threshold("edge", "shortest_edge", Interval(above=100)).rule == "shortest_edge > 100"
    assert Threshold("stop", "share", Interval(below=1)).rule == "share < 1"


def test_redundancy_takes_a_cosine_distance() -> None:
    assert Redundancy("redundancy", within=0.1).column == "features"
    with pytest.raises(ValueError, match="cosine distance"):
        Redundancy("redundancy", within=0)
