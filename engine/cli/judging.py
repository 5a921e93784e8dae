"""The recipe that judges a model, for commands that compare its engines (`models compile`, `models verify`)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from danqing.engine.cli.options import RecipeOptions
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.storage import path_of

if TYPE_CHECKING:
    from danqing.engine.recipe.reading import Recipe

OTHER_TOWERS = {"image": "text", "text": "image"}
"""Tower → the other one. Their roles are `TOWER_embedding`, and the names of their cards end with `-TOWER`."""


def recipe_with(name: str, options: RecipeOptions) -> Recipe:
    """Returns the recipe given, else the built-in one that uses the model, else one made for it.

    Args:
        name: name or path of the model's card.
        options: the recipe given, if any, and values to override.

    Raises:
        DanqingError: there is no such card, or no criterion judges the model.
    """
    from danqing.engine.recipe.reading import builtin_names

    if options.recipe:
        recipe = options.load()
        asking = recipe.judgments  # of another model, behind an endpoint
        return replace(recipe, criteria=tuple(c for c in recipe.criteria if c not in asking))
    for builtin in reversed(builtin_names()):
        recipe = options.load(builtin)
        if name in recipe.models.values():
            return recipe
    return _recipe_for(name, options)


def _recipe_for(name: str, options: RecipeOptions) -> Recipe:
    """Makes a recipe of a built-in one with the model, and with the other tower of its checkpoint.

    That tower is the one that `options` name, else the one in the store. Without it, criteria that need it are left
    out.
    """
    from danqing.engine.recipe.reading import DEFAULT_RECIPE
    from danqing.engine.stages import columns_of_role
    from danqing.trt_models.card import load_card

    card = load_card(name)
    base = "danqing" if card.export else DEFAULT_RECIPE
    role = next((role for role, other in options.load(base).models.items() if load_card(other).task == card.task), None)
    if role is None:
        raise DanqingError(f"no built-in recipe has a {card.task}; give one with --recipe that judges {name}")
    settings, missing = [*options.settings, f"models.{role}={name}"], ""
    tower = role.removesuffix("_embedding")
    if other := OTHER_TOWERS.get(tower):
        beside = re.sub(rf"-{tower}(\.ya?ml)?$", rf"-{other}\1", name)
        if not any(setting.startswith(f"models.{other}_embedding=") for setting in settings):
            if beside != name and _is_stored(beside):
                settings.append(f"models.{other}_embedding={beside}")
            else:
                missing = f"{other}_embedding"
    recipe = RecipeOptions(base, tuple(settings)).load()
    if missing:
        others = columns_of_role(missing)
        recipe = replace(recipe, criteria=tuple(c for c in recipe.criteria if others.isdisjoint(c.columns)))
    if all(columns_of_role(role).isdisjoint(criterion.columns) for criterion in recipe.criteria):
        raise DanqingError(
            f"no criterion judges {name} without the other tower: export that too, or name it with "
            f"--set models.{missing}=NAME"
        )
    return recipe


def _is_stored(name: str) -> bool:
    from danqing.trt_models.card import card_names, load_card
    from danqing.trt_models.store import is_stored

    return (name in card_names() or path_of(name).is_file()) and is_stored(load_card(name))
