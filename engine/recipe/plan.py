"""The plan of SCORE: criteria → columns → stages, and the gates between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from danqing.engine.core.columns import ENCODED, Column
from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.criteria import RowCriterion
from danqing.engine.recipe.reading import Recipe


@dataclass
class Step:
    """A stage of the plan.

    Attributes:
        stage: the class.
        gates: criteria that can be judged once the stage has run.
        spent: columns that no later stage needs; they are dropped after the stage.
        needed: columns that a later stage needs.
    """

    stage: type[Any]
    gates: list[RowCriterion] = field(default_factory=list)
    spent: tuple[str, ...] = ()
    needed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """The stages that run, in order.

    Stages are in the order in which the recipe's criteria need them. A row that a gate drops therefore has the columns
    of every earlier criterion, and `dropped_by` is the same with gates and without.

    Attributes:
        steps: the stages with their gates.
        also: columns that are computed though no gate reads them.
        roles: the roles that the recipe names models for.
    """

    steps: tuple[Step, ...]
    also: tuple[str, ...] = ()
    roles: frozenset[str] = frozenset()

    @property
    def wanted(self) -> set[str]:
        """The columns that a stage needs, a gate reads, or `also` lists."""
        needs = {need for step in self.steps for need in step.stage.needs}
        return needs | {column for step in self.steps for gate in step.gates for column in gate.columns} | {*self.also}

    @property
    def scores(self) -> dict[str, Any]:
        """The computed columns of scores/*.parquet and their Arrow types, in order of computation."""
        produced: dict[str, Column] = {}
        for step in self.steps:
            produced |= step.stage.produces
            if step.stage.role not in self.roles:  # a stage leaves out the columns of a model that no criterion needs
                for name in set(step.stage.model_columns or ()) - self.wanted:
                    del produced[name]
        stored = (column for column in produced.values() if column.type is not None and column.file == "scores")
        return {column.name: column.type for column in stored}


def decidable(recipe: Recipe, catalogue: Iterable[type[Any]], given: Iterable[str]) -> Recipe:
    """Removes from a recipe the criteria and `also` columns that cannot be computed from the given columns.

    Args:
        recipe: the recipe.
        catalogue: the stages to compute with; each has `needs` and `produces`.
        given: columns that reading provides.

    Returns:
        The recipe with the remaining criteria and `also` columns, in their order.
    """
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
    """Schedules the stages that a recipe needs.

    Args:
        recipe: its criteria and `also` columns are computed.
        catalogue: the stages to choose from; each has `name`, `needs` and `produces`.
        given: columns that reading provides.
        also: more columns to compute.

    Returns:
        The stages in the order of the criteria that need them, and the gates between them.

    Raises:
        DanqingError: no stage computes a column that is needed.
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

    def earliest_position(stage: type[Any]) -> int:
        """The place right after the stages that it needs, so that pixels and encoded bytes are not kept for it."""
        needed = (n for n, step in enumerate(steps, 1) if not set(step.stage.produces).isdisjoint(stage.needs))
        return max(needed, default=0)

    waiting: list[RowCriterion] = []  # can be judged before any stage has run
    for criterion in recipe.criteria:
        for column in criterion.columns:
            schedule(column)
        gates = steps[-1].gates if steps else waiting
        if isinstance(criterion, RowCriterion):
            gates.append(criterion)
    ungated = [c for criterion in recipe.criteria if not isinstance(criterion, RowCriterion) for c in criterion.columns]
    also = (*recipe.also, *also, *ungated)
    for column in also:
        schedule(column, earliest_position)
    if steps:
        steps[0].gates[:0] = waiting
    # Columns that are not stored are dropped after the last stage that needs them: pixels and encoded bytes are large.
    produced = (column for step in steps for column in step.stage.produces.values())
    unstored = {ENCODED} | {column.name for column in produced if column.type is None}
    for position, step in enumerate(steps):
        step.needed = frozenset(name for other in steps[position + 1 :] for name in other.stage.needs)
        step.spent = tuple(sorted(unstored - step.needed))
    return Plan(tuple(steps), also, frozenset(recipe.models))
