"""The funnel: what each criterion left and dropped, as the paper's Table 6."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from danqing.engine.decide.dedup.sample import Recall
from danqing.engine.recipe.reading import Recipe


@dataclass(frozen=True)
class Line:
    """One step: `dropped` rows fell here, `left` stayed; `share` = dropped ÷ the rows that came in.

    `recall`: of a search that need not find all, what it found.
    """

    criterion: str
    group: str
    step: str
    rule: str
    left: int
    dropped: int
    recall: Recall | None = None

    @property
    def told(self) -> str:
        """The rule, and how well it was kept to."""
        return f"{self.rule} (measured: {self.recall})" if self.recall else self.rule

    @property
    def share(self) -> float:
        return self.dropped / (self.left + self.dropped) if self.left + self.dropped else 0.0


@dataclass(frozen=True)
class Funnel:
    recipe: str
    collected: int
    lines: tuple[Line, ...]

    @property
    def kept(self) -> int:
        return self.lines[-1].left if self.lines else self.collected

    @classmethod
    def count(cls, recipe: Recipe, dropped_by: np.ndarray, recall: Mapping[int, Recall] | None = None) -> Funnel:
        """From each row's criterion position (-1 = kept), and the recall that was measured at some positions."""
        left, lines = len(dropped_by), []
        for position, criterion in enumerate(recipe.criteria):
            dropped = int((dropped_by == position).sum())
            left -= dropped
            step = criterion.step or criterion.name
            measured = (recall or {}).get(position)
            lines.append(Line(criterion.name, criterion.group, step, criterion.rule, left, dropped, measured))
        return cls(recipe.name, len(dropped_by), tuple(lines))

    def to_dict(self) -> dict[str, Any]:
        lines = [asdict(line) | {"share": round(line.share, 6)} for line in self.lines]
        return {"recipe": self.recipe, "collected": self.collected, "kept": self.kept, "steps": lines}

    @classmethod
    def read(cls, path: Path) -> Funnel:
        content = json.loads(path.read_text(encoding="utf-8"))
        lines = ({k: v for k, v in step.items() if k not in ("share", "recall")} for step in content["steps"])
        recalls = (Recall(**found) if (found := step.get("recall")) else None for step in content["steps"])
        told = (Line(**line, recall=recall) for line, recall in zip(lines, recalls, strict=True))
        return cls(content["recipe"], content["collected"], tuple(told))
