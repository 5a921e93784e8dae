"""Reference runs: earlier curated sets or evaluation data, whose near-duplicates a run must not keep."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from danqing.engine.core.columns import FEATURES
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.storage import path_of
from danqing.engine.decide.contents import scores_hash, verdicts_hash
from danqing.engine.recipe.criteria import Exclusion, Redundancy
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run

DEFAULT_DISTANCE = 0.1
"""The paper's threshold, for recipes without a redundancy criterion of features."""


def with_references(
    recipe: Recipe, kept: Iterable[Path] = (), excluded: Iterable[Path] = (), within: float | None = None
) -> Recipe:
    """Adds criteria that drop the near-duplicates of other runs' rows.

    Args:
        recipe: its first redundancy criterion of features gives the place and the default distance.
        kept: curated runs; compared last, when the new rows have no near-duplicates among themselves. Captions are
            compared, too, by every criterion of the recipe that compares captions; only captions, if the recipe
            compares them and no features.
        excluded: runs of evaluation pictures; compared before redundancy, so that none of their near-duplicates
            represents a group.
        within: the cosine distance to `excluded`.

    Raises:
        DanqingError: `within` is not a cosine distance.
    """
    sought = recipe.near_duplicates
    default = sought[0].within if sought else DEFAULT_DISTANCE
    place = recipe.criteria.index(sought[0]) if sought else len(recipe.criteria)
    if within is not None and not 0 < within < 2:
        raise DanqingError(
            f"--exclude-within {within:g}: a cosine distance between 0 and 2, for example {DEFAULT_DISTANCE}"
        )
    before = _exclusions("excluded", excluded, default if within is None else within, "evaluation data")
    captions = [c for c in recipe.criteria if isinstance(c, Redundancy) and c.compares_captions]
    after = [
        exclusion
        for c in captions
        for exclusion in _exclusions(f"already_kept_{c.name}", kept, c.within, "caption kept before", c.column)
    ]
    if not captions or any(FEATURES in c.columns for c in recipe.criteria):
        after += _exclusions("already_kept", kept, default, "kept before")
    return replace(recipe, criteria=(*recipe.criteria[:place], *before, *recipe.criteria[place:], *after))


def _exclusions(
    name: str, folders: Iterable[Path], within: float, step: str, column: str = FEATURES
) -> list[Exclusion]:
    return [
        Exclusion(f"{name}_{number}" if number > 1 else name, within, str(folder.resolve()), column, step=step)
        for number, folder in enumerate(folders, 1)
    ]


def reference_run_folder(folder: Path, output: Path) -> Path:
    """The folder of the run of a folder of pictures, OUT/references/…; a folder that is a run is returned as it is."""
    if (folder / "run.json").exists():
        return folder
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return output / "references" / f"{folder.resolve().name}-{name}"


def features_recipe(recipe: Recipe) -> Recipe:
    """The recipe that computes the features of the given one and nothing else.

    Raises:
        DanqingError: the recipe has no image embedding model.
    """
    role = "image_embedding"
    if role not in recipe.models:
        raise DanqingError(f"recipe {recipe.name} names no model for {role}, so that pictures cannot be compared")
    return Recipe("features", {role: recipe.models[role]}, (Redundancy("redundancy", DEFAULT_DISTANCE),))


def check_references(run: Run, recipe: Recipe) -> dict[str, object]:
    """Checks the reference runs of a recipe.

    Returns:
        Folder → what a decision depends on: the hashes of its scores and of its verdicts, if it has any.

    Raises:
        DanqingError: a reference run is missing, not finished, or has features of another model.
    """
    states: dict[str, object] = {}
    for criterion in recipe.criteria:
        for folder in criterion.run_folders:
            other = Run.open(path_of(folder))
            if other.unscored():
                raise DanqingError(f"{other.folder}: not all of its shards have scores; finish that run first")
            mine, theirs = (each.manifest["models"].get("image_embedding") for each in (run, other))
            if mine != theirs:
                raise DanqingError(
                    f"{criterion.name}: the features of {other.folder} are of another model than those of "
                    f"{run.folder}; score both with the same image_embedding"
                )
            states[folder] = [scores_hash(other), verdicts_hash(other) if "decided" in other.manifest else None]
    return states
