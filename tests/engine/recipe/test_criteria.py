from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from danqing.engine.core.columns import Column
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.decide.columns import TableColumns
from danqing.engine.decide.scores import Scores
from danqing.engine.decide.verdicts import walk
from danqing.engine.recipe import reading
from danqing.engine.recipe.criteria import KINDS, Criterion, FieldError, Redundancy, Threshold
from danqing.engine.recipe.interval import Interval
from danqing.engine.recipe.outcome import Outcome
from danqing.engine.recipe.reading import load_recipe, recipe_from_dict
from danqing.engine.report.numbers import Count


def test_bounds_include_or_exclude_their_value() -> None:
    scores = np.array([0.9, 1.0, 2.0, 3.0, 3.1, np.nan])
    assert Interval(minimum=1, maximum=3).holds(scores).tolist() == [False, True, True, True, False, False]
    assert Interval(above=1, below=3).holds(scores).tolist() == [False, False, True, False, False, False]
    assert Interval(minimum=1).holds(scores).tolist() == [False, True, True, True, True, False]


def test_a_score_in_float32_equals_the_fraction_that_it_stores() -> None:
    for count in range(1, 60):
        for part in range(1, count):
            bound = part / count
            score = np.array([np.float32(bound), np.nextafter(np.float32(bound), np.float32(1))], np.float64)
            assert Interval(minimum=bound, maximum=bound).holds(score).tolist() == [True, False], bound
            assert Interval(above=bound).holds(score).tolist() == [False, True], bound
            assert not Interval(below=bound).holds(score).any(), bound
            count_at = Count.of(np.array([bound, 2.0]))
            count_at.add(score, np.array([bound, 2.0]))
            assert count_at.below.tolist() == [0, 2] and count_at.up_to.tolist() == [1, 2], bound
    sizes = np.array([2.0**24, 2.0**24 + 1])
    assert Interval(minimum=2**24 + 1).holds(sizes).tolist() == [False, True]


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


@dataclass(frozen=True)
class Best(Criterion):
    """The rows with the highest scores pass: `count` of those that earlier criteria left."""

    column: str
    count: int

    marker = "best"
    kind = "a choice of the best"
    keys = {"column": str, "best": float}

    @classmethod
    def read(cls, name: str, values: Mapping[str, Any], section: str = "", step: str = "") -> Best:
        return cls(name, values.get("column", name), int(values["best"]), section=section, step=step)

    def to_dict(self) -> dict[str, Any]:
        return {"column": self.column, "best": self.count}

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def rule(self) -> str:
        return f"the {self.count} highest {self.column}"

    def check(self, columns: Mapping[str, Column]) -> None:
        if self.count < 1:
            raise FieldError("best", "'best' is a number of rows, at least 1")

    def judge(self, scores: Any, alive: np.ndarray, device: Device, progress: Any = None) -> Outcome:
        rows = np.flatnonzero(alive)
        return Outcome(np.sort(rows[np.argsort(-scores[self.column][rows], kind="stable")[: self.count]]))


def test_a_new_kind_is_one_class_and_one_entry(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "KINDS", (Best, *KINDS))
    path = tmp_path / "r.yaml"
    path.write_text("recipe: r\ncriteria:\n  words: {max: 60}\n  longest: {column: words, best: 2, section: size}\n")
    recipe = load_recipe(path)
    assert recipe.criteria[1] == Best("longest", "words", 2, section="size")
    assert recipe_from_dict(recipe.to_dict(), "run.json") == recipe
    with pytest.raises(DanqingError, match=r"--set longest\.best=0: longest: 'best' is a number of rows"):
        load_recipe(path, ["longest.best=0"])
    with pytest.raises(DanqingError, match="'best' makes it a choice of the best, which takes no 'max'"):
        load_recipe(path, ["longest.max=3"])
    words = pa.chunked_array([pa.array([7, 9, 61, 8, None], pa.int32())])
    error = np.array([False, False, False, False, True])
    scores = Scores(error, TableColumns({"words": words}))
    assert walk(scores, recipe, device).dropped_by.tolist() == [1, -1, 0, -1, 0]
