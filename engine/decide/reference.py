"""Other runs that rows are held against: what an earlier curated set has already, or an evaluation set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.criteria import FEATURES, Apart, Redundancy
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run

USUAL = 0.1
"""The paper's threshold, for recipes that look for no near-duplicates themselves."""


def held_against(
    recipe: Recipe, kept: Iterable[Path] = (), excluded: Iterable[Path] = (), within: float | None = None
) -> Recipe:
    """The recipe with criteria that drop what is near the rows of other runs.

    Args:
        kept: runs that have been curated; looked at last, when near-duplicates among the new rows are gone.
        excluded: runs of evaluation pictures; looked at first, so that no set is represented by one of them.
        within: their cosine distance; default: that of the recipe's first redundancy criterion.

    Raises:
        DanqingError: a distance that is none.
    """
    sought = [c for c in recipe.criteria if isinstance(c, Redundancy) and c.column == FEATURES]
    usual = sought[0].within if sought else USUAL
    place = recipe.criteria.index(sought[0]) if sought else len(recipe.criteria)
    if within is not None and not 0 < within < 2:
        raise DanqingError(f"--exclude-within {within:g}: a cosine distance between 0 and 2, for example {USUAL}")
    exclude = [
        Apart(
            f"excluded{_number(i)}", usual if within is None else within, str(folder.resolve()), step="evaluation data"
        )
        for i, folder in enumerate(excluded)
    ]
    earlier = [
        Apart(f"already_kept{_number(i)}", usual, str(folder.resolve()), step="kept before")
        for i, folder in enumerate(kept)
    ]
    return replace(recipe, criteria=(*recipe.criteria[:place], *exclude, *recipe.criteria[place:], *earlier))


def _number(place: int) -> str:
    return f"_{place + 1}" if place else ""


def place_of_reference(folder: Path, output: Path) -> Path:
    """Where the run of a folder of pictures is kept, OUT/references/…; a folder that is a run is its own."""
    if (folder / "run.json").exists():
        return folder
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return output / "references" / f"{folder.resolve().name}-{name}"


def only_features(recipe: Recipe) -> Recipe:
    """The recipe that computes the features of the given one and nothing else."""
    role = "image_embedding"
    if role not in recipe.models:
        raise DanqingError(f"recipe {recipe.name} names no model for {role}; pictures cannot be compared without one")
    return Recipe("features", {role: recipe.models[role]}, (Redundancy("redundancy", USUAL),))


def check_references(run: Run, recipe: Recipe) -> dict[str, object]:
    """What the runs are that the recipe holds rows against, folder by folder: part of what a decision depends on.

    Raises:
        DanqingError: one is not there, not finished, or has features of another model.
    """
    states: dict[str, object] = {}
    for criterion in recipe.criteria:
        if not isinstance(criterion, Apart):
            continue
        other = Run.open(Path(criterion.folder))
        if other.unscored():
            raise DanqingError(f"{other.folder}: not all of its shards have scores; finish that run first")
        mine, theirs = (each.manifest["models"].get("image_embedding") for each in (run, other))
        if mine != theirs:
            raise DanqingError(
                f"{criterion.name}: the features of {other.folder} come from another model than those of {run.folder}; "
                "score both with the same image_embedding"
            )
        states[criterion.folder] = [len(other.shards), other.manifest.get("decided", {}).get("recipe_hash")]
    return states
