"""Checks that a recipe's patterns and questions are those that a run was scored with."""

from __future__ import annotations

from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run


def check_patterns(run: Run, recipe: Recipe) -> None:
    """Checks that SCORE counted a recipe's patterns and asked its questions.

    Raises:
        DanqingError: a pattern, the text that it is counted in, or a question is another one; names both.
    """
    scored = {criterion.name: criterion for criterion in run.recipe.with_own_columns}
    differences = []
    for criterion in recipe.with_own_columns:
        own = scored.get(criterion.name)
        if own is None or own.definition != criterion.definition:
            counted = f"the run has the {own.meaning}" if own else "the run has no such column"
            differences.append(f"{criterion.name}: the recipe asks for the {criterion.meaning}, {counted}")
    if differences:
        listed = "\n  ".join(differences)
        raise DanqingError(
            f"{run.folder} was scored without patterns or questions of recipe {recipe.name}:\n  {listed}\n"
            "Patterns are counted and questions asked by `danqing score`: score with this recipe into another folder; "
            "`danqing decide` changes bounds only"
        )
