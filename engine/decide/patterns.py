"""Whether the patterns that a recipe counts are those that a run was scored with."""

from __future__ import annotations

from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run


def check_patterns(run: Run, recipe: Recipe) -> None:
    """Checks that SCORE counted a recipe's patterns.

    Raises:
        DanqingError: a pattern, or the text that it is counted in, is another one; names both.
    """
    scored = {criterion.name: criterion for criterion in run.recipe.patterns}
    differences = []
    for criterion in recipe.patterns:
        own = scored.get(criterion.name)
        if own is None or own.counted != criterion.counted:
            counted = f"the run has the {own.matches}" if own else "the run has no such column"
            differences.append(f"{criterion.name}: the recipe asks for the {criterion.matches}, {counted}")
    if differences:
        listed = "\n  ".join(differences)
        raise DanqingError(
            f"{run.folder} was scored without patterns of recipe {recipe.name}:\n  {listed}\n"
            "Patterns are counted by `danqing score`: score with this recipe into another folder; `danqing decide` "
            "changes bounds only"
        )
