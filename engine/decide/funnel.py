"""The funnel: how many rows each criterion left and dropped, as in the paper's Table 6."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from danqing.engine.recipe.outcome import Recall
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import decide_again, reading


@dataclass(frozen=True)
class Line:
    """One criterion of the funnel.

    Attributes:
        criterion: its name.
        section: the heading it is shown under.
        step: what reports call it.
        rule: what a row must satisfy.
        left: rows that passed it and every criterion before.
        dropped: rows that it dropped.
        recall: measured, if its search may miss pairs.
        saved: groups that a row represents which passes the later criteria, instead of one that they drop; None if the
            criterion does not prefer survivors.
    """

    criterion: str
    section: str
    step: str
    rule: str
    left: int
    dropped: int
    recall: Recall | None = None
    saved: int | None = None

    @property
    def measured_rule(self) -> str:
        """The rule, with the measured recall and the number of saved groups if there are any."""
        measured = [f"measured: {self.recall}"] if self.recall else []
        measured += [f"groups saved: {self.saved:,}"] if self.saved else []
        return f"{self.rule} ({'; '.join(measured)})" if measured else self.rule

    @property
    def share(self) -> float:
        """Dropped rows ÷ rows that the criterion judged."""
        return self.dropped / (self.left + self.dropped) if self.left + self.dropped else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The line as funnel.json holds it."""
        saved = {} if self.saved is None else {"saved": self.saved}
        line = {name: value for name, value in asdict(self).items() if name != "saved"}
        return line | {"share": round(self.share, 6)} | saved

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Line:
        """The inverse of `to_dict`."""
        recall = Recall(**found) if (found := content.get("recall")) else None
        values = {name: content[name] for name in ("criterion", "section", "step", "rule", "left", "dropped")}
        return cls(recall=recall, saved=content.get("saved"), **values)


@dataclass(frozen=True)
class Funnel:
    """A recipe's criteria in order, with their rows; `collected` rows came in."""

    recipe: str
    collected: int
    lines: tuple[Line, ...]

    @property
    def kept(self) -> int:
        """Rows that passed every criterion."""
        return self.lines[-1].left if self.lines else self.collected

    @classmethod
    def count(
        cls,
        recipe: Recipe,
        dropped_by: np.ndarray,
        recall: Mapping[int, Recall] | None = None,
        saved: Mapping[int, int] | None = None,
    ) -> Funnel:
        """Counts the rows of every criterion.

        Args:
            dropped_by: int64 (rows,), position of the criterion that dropped the row, -1 for kept rows.
            recall: position → measured recall.
            saved: position → number of saved groups (`Line`).
        """
        left, lines = len(dropped_by), []
        for position, criterion in enumerate(recipe.criteria):
            dropped = int((dropped_by == position).sum())
            left -= dropped
            step = criterion.step or criterion.name
            measured = (recall or {}).get(position), (saved or {}).get(position)
            lines.append(Line(criterion.name, criterion.section, step, criterion.rule, left, dropped, *measured))
        return cls(recipe.name, len(dropped_by), tuple(lines))

    def to_dict(self) -> dict[str, Any]:
        """The funnel as funnel.json holds it."""
        steps = [line.to_dict() for line in self.lines]
        return {"recipe": self.recipe, "collected": self.collected, "kept": self.kept, "steps": steps}

    @classmethod
    def read(cls, path: Path) -> Funnel:
        """Reads a funnel.json.

        Raises:
            OSError, ValueError: the file is missing or damaged.
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        try:
            return cls(content["recipe"], content["collected"], tuple(map(Line.from_dict, content["steps"])))
        except (KeyError, TypeError) as problem:
            raise ValueError(f"not a funnel: {problem}") from None

    @classmethod
    def of(cls, run: Run) -> Funnel:
        """Reads the funnel of a run.

        Raises:
            DanqingError: funnel.json is missing or damaged.
        """
        path = run.folder / "funnel.json"
        with reading(path, decide_again(run)):
            return cls.read(path)
