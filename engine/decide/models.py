"""Checks that the models that a recipe names are those that scored a run."""

from __future__ import annotations

from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run
from danqing.trt_models.card import load_card


def check_models(run: Run, recipe: Recipe, force: bool = False) -> None:
    """Checks that a recipe names the models that scored a run.

    Args:
        run: the run.
        recipe: the recipe to decide with.
        force: accept other models; their thresholds are then applied to the scores that there are.

    Raises:
        DanqingError: other models, or a card that does not exist; names both models.
    """
    own, differences = run.recipe.models, []
    for role, name in recipe.models.items():
        scored = run.manifest["models"].get(role)
        try:
            card = load_card(name)
        except DanqingError:
            if name == own.get(role):  # deciding does not need the model that scored
                continue
            raise
        if scored and card.hash != scored["card"]:
            differences.append(
                f"models.{role}: scored with {scored['name']} (card {scored['card'][:8]}), "
                f"the recipe names {card.name} (card {card.hash[:8]})"
            )
    if differences and not force:
        listed = "\n  ".join(differences)
        raise DanqingError(
            f"{run.folder} was scored with other models than those of recipe {recipe.name}:\n  {listed}\n"
            "Thresholds of one model do not suit another: score again with this recipe, or give --force"
        )
