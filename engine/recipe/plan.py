"""From criteria to columns, from columns to stages, from both to gates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.criteria import FEATURES, Criterion, Redundancy
from danqing.engine.recipe.reading import Recipe

ENCODED = "image"
"""The column of encoded bytes, as read."""


@dataclass
class Step:
    """A stage, the criteria that become decidable with it, and the columns nobody needs afterwards."""

    stage: type[Any]
    gates: list[Criterion] = field(default_factory=list)
    spent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The stages that run, in order.

    Stages stand in the order in which the recipe's criteria ask for them, so a gate only ever drops a row whose
    earlier criteria are all known: `dropped_by` is the same with gates and without. `also`: columns that no gate
    asks for.
    """

    steps: tuple[Step, ...]
    also: tuple[str, ...] = ()

    @property
    def wanted(self) -> set[str]:
        """Every column that some stage of this plan needs, a criterion reads, or is computed for study."""
        needs = {need for step in self.steps for need in step.stage.needs}
        return needs | {gate.column for step in self.steps for gate in step.gates} | set(self.also)

    @property
    def scores(self) -> dict[str, Any]:
        """The stored columns and their Arrow types, in order of computation."""
        produced = {name: kind for step in self.steps for name, kind in step.stage.produces.items()}
        return {name: kind for name, kind in produced.items() if kind is not None and name != FEATURES}


def decidable(recipe: Recipe, catalogue: Iterable[type[Any]], given: Iterable[str]) -> Recipe:
    """The recipe with only those criteria and study columns that can be computed from the columns given."""
    available = set(given)
    waiting = list(catalogue)
    while ready := [stage for stage in waiting if available.issuperset(stage.needs)]:
        available.update(name for stage in ready for name in stage.produces)
        waiting = [stage for stage in waiting if stage not in ready]
    return replace(
        recipe,
        criteria=tuple(c for c in recipe.criteria if available.issuperset(c.columns)),
        also=tuple(column for column in recipe.also if column in available),
    )


def make_plan(recipe: Recipe, catalogue: Iterable[type[Any]], given: Iterable[str], also: Iterable[str] = ()) -> Plan:
    """Schedules what the recipe's criteria need and its study columns, nothing else.

    Args:
        catalogue: the stages there are; each has `name`, `needs` and `produces` (column → Arrow type, or None
            for a column that only travels to later stages).
        given: columns that reading provides.
        also: columns wanted beside the recipe's own.
    """
    producers: dict[str, type[Any]] = {}
    for stage in catalogue:
        for name in stage.produces:
            if producers.setdefault(name, stage) is not stage:
                raise DanqingError(
                    f"the stages {producers[name].name!r} and {stage.name!r} both compute the column {name!r}; "
                    "uninstall the package of one of them"
                )
    steps: list[Step] = []
    available = set(given)

    def schedule(column: str, place: Callable[[type[Any]], int] = lambda stage: len(steps)) -> None:
        if column in available:
            return
        if column not in producers:
            raise DanqingError(f"no stage computes a column {column!r}")
        stage = producers[column]
        for need in stage.needs:
            schedule(need)
        steps.insert(place(stage), Step(stage))
        available.update(stage.produces)

    def soonest(stage: type[Any]) -> int:
        """Right after what it needs: what only travels (pixels, encoded bytes) should not wait for the models."""
        given_by = (n for n, step in enumerate(steps, 1) if not set(step.stage.produces).isdisjoint(stage.needs))
        return max(given_by, default=0)

    waiting: list[Criterion] = []  # decidable before any stage has run
    for criterion in recipe.criteria:
        for column in criterion.columns:
            schedule(column)
        gates = steps[-1].gates if steps else waiting
        if isinstance(criterion, Criterion):
            gates.append(criterion)
    compared = [c for criterion in recipe.criteria if isinstance(criterion, Redundancy) for c in criterion.columns]
    also = (*recipe.also, *also, *compared)
    for column in also:
        schedule(column, soonest)
    if steps:
        steps[0].gates[:0] = waiting
    # What only travels is let go as soon as nobody later needs it; the encoded picture is the heaviest of all.
    travelling = {ENCODED} | {c for step in steps for c, kind in step.stage.produces.items() if kind is None}
    for position, step in enumerate(steps):
        step.spent = tuple(sorted(travelling - {n for other in steps[position + 1 :] for n in other.stage.needs}))
    return Plan(tuple(steps), also)
