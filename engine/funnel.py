"""The funnel: what each criterion left and dropped, as the paper's Table 6."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.recipe import Recipe


@dataclass(frozen=True)
class Line:
    """One step: `dropped` rows fell here, `left` stayed; `share` = dropped ÷ the rows that came in."""

    criterion: str
    group: str
    step: str
    rule: str
    left: int
    dropped: int

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
    def count(cls, recipe: Recipe, dropped_by: np.ndarray) -> Funnel:
        """From each row's criterion position (-1 = kept)."""
        left, lines = len(dropped_by), []
        for position, criterion in enumerate(recipe.criteria):
            dropped = int((dropped_by == position).sum())
            left -= dropped
            step = criterion.step or criterion.name
            lines.append(Line(criterion.name, criterion.group, step, criterion.rule, left, dropped))
        return cls(recipe.name, len(dropped_by), tuple(lines))

    def to_dict(self) -> dict[str, Any]:
        lines = [asdict(line) | {"share": round(line.share, 6)} for line in self.lines]
        return {"recipe": self.recipe, "collected": self.collected, "kept": self.kept, "steps": lines}

    @classmethod
    def read(cls, path: Path) -> Funnel:
        content = json.loads(path.read_text(encoding="utf-8"))
        lines = ({k: v for k, v in step.items() if k != "share"} for step in content["steps"])
        return cls(content["recipe"], content["collected"], tuple(Line(**line) for line in lines))
