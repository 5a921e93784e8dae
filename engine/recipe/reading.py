"""A recipe: the models to score with and the ordered criteria, read from YAML and checked line by line."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.recipe.criteria import FEATURES, AnyCriterion, Apart, Criterion, Interval, Redundancy

TOP_KEYS = ("recipe", "description", "models", "also", "criteria")
BOUNDS = {"min": "minimum", "max": "maximum", "above": "above", "below": "below"}
REDUNDANCY_KEYS = ("within", "keep", "max_diameter", "recall", "not_near")
CRITERION_KEYS = ("column", "group", "step", *REDUNDANCY_KEYS, *BOUNDS)


@dataclass(frozen=True)
class Recipe:
    """What to compute and what to keep; immutable, hashable, readable back from its own `to_dict`.

    `also`: columns computed for study, beside those that the criteria read.
    """

    name: str
    models: Mapping[str, str]
    criteria: tuple[AnyCriterion, ...]
    description: str = ""
    also: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The recipe in the layout of its YAML file, thresholds as they are in force."""
        return {
            "recipe": self.name,
            "description": self.description,
            "models": dict(self.models),
            "also": list(self.also),
            "criteria": {c.name: _criterion_dict(c) for c in self.criteria},
        }

    @property
    def hash(self) -> str:
        """16 hex digits; equal for recipes that decide alike (comments, study columns and layout don't)."""
        content = {key: value for key, value in self.to_dict().items() if key in ("models", "criteria")}
        text = json.dumps([content, list(content["criteria"])], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: Recipe) -> list[str]:
        """What one would have to change in `other` to get this recipe, one sentence each."""
        mine, theirs = self.to_dict(), other.to_dict()
        found = [
            f"models.{role}: {theirs['models'].get(role)} there, {mine['models'].get(role)} here"
            for role in dict.fromkeys([*theirs["models"], *mine["models"]])
            if mine["models"].get(role) != theirs["models"].get(role)
        ]
        if mine["also"] != theirs["also"]:
            found.append(f"also: {theirs['also']} there, {mine['also']} here")
        for name in dict.fromkeys([*theirs["criteria"], *mine["criteria"]]):
            here, there = mine["criteria"].get(name), theirs["criteria"].get(name)
            if here is None or there is None:
                found.append(f"{name}: only {'here' if there is None else 'there'}")
                continue
            for key in dict.fromkeys([*there, *here]):
                if here.get(key) != there.get(key):
                    found.append(f"{name}.{key}: {there.get(key)} there, {here.get(key)} here")
        if not found and list(mine["criteria"]) != list(theirs["criteria"]):
            found.append("the order of the criteria")
        return found


def _criterion_dict(criterion: AnyCriterion) -> dict[str, Any]:
    out: dict[str, Any] = {"group": criterion.group, "step": criterion.step}
    if isinstance(criterion, Apart):
        return out | {"within": criterion.within, "not_near": criterion.folder}
    if isinstance(criterion, Redundancy):
        default = Redundancy(criterion.name, criterion.within, criterion.column)
        chosen = {key: getattr(criterion, key) for key in ("keep", "max_diameter", "recall")}
        chosen = {key: value for key, value in chosen.items() if value != getattr(default, key)}
        column = {} if criterion.column == FEATURES else {"column": criterion.column}
        return out | column | {"within": criterion.within} | chosen
    bounds = asdict(criterion.interval)
    return out | {"column": criterion.column} | {k: bounds[v] for k, v in BOUNDS.items() if bounds[v] is not None}


def builtin_names() -> list[str]:
    return sorted(
        p.name[:-5]
        for p in (resources.files("danqing.engine.recipe") / "recipes").iterdir()
        if p.name.endswith(".yaml")
    )


def load_recipe(
    name_or_path: str | Path, settings: Iterable[str] = (), columns: Iterable[str] = (), roles: Iterable[str] = ()
) -> Recipe:
    """Reads a built-in recipe by name or a YAML file by path, then applies `settings`.

    Args:
        name_or_path: `embedded`, `danqing` or a file.
        settings: `words.max=40`, `models.image_embedding=my-clip`: dotted path, equals, YAML value.
        columns: the score columns that stages can produce; if given, every criterion's column must be one.
        roles: the roles that stages have a model for; if given, every key under `models` must be one.

    Raises:
        DanqingError: names the file and line, and the nearest valid name.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        try:
            text, where = path.read_text(encoding="utf-8"), str(path)
        except OSError as problem:
            raise DanqingError(f"{path}: cannot read the recipe: {problem.strerror}") from None
    elif str(name_or_path) in builtin_names():
        where = f"{name_or_path}.yaml"
        text = (resources.files("danqing.engine.recipe") / "recipes" / where).read_text(encoding="utf-8")
    else:
        raise DanqingError(
            f"no recipe {str(name_or_path)!r}: {did_you_mean(str(name_or_path), builtin_names())}; "
            "or give the path of a .yaml file"
        )
    tree = _compose(text, where)
    for setting in settings:
        _apply(tree, setting)
    return _read(tree, where, set(columns), set(roles))


def recipe_from_dict(content: Mapping[str, Any], where: str, settings: Iterable[str] = ()) -> Recipe:
    """A recipe back from `Recipe.to_dict`, as run.json stores it, with `settings` applied."""
    tree = _compose(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), where)
    for setting in settings:
        _apply(tree, setting)
    return _read(tree, where, set(), set())


def _compose(text: str, where: str) -> yaml.Node:
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as problem:
        raise DanqingError(f"{where}: not valid YAML: {problem}") from None
    if not isinstance(tree, yaml.MappingNode):
        raise DanqingError(f"{where}: a recipe is a mapping with the keys {', '.join(TOP_KEYS)}")
    return tree


def _apply(tree: yaml.Node, setting: str) -> None:
    """`words.max=40` → the node tree; names are checked later, with everything else."""
    path, equals, value = setting.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise DanqingError(f"--set {setting}: write it as criterion.key=value, for example words.max=40")
    if parts[0] not in TOP_KEYS:
        parts.insert(0, "criteria")
    leaf = yaml.compose(value, Loader=yaml.SafeLoader) or yaml.ScalarNode("tag:yaml.org,2002:null", "")
    leaf.start_mark = yaml.Mark(f"--set {setting}", 0, -1, 0, None, 0)
    node = tree
    for depth, part in enumerate(parts):
        assert isinstance(node, yaml.MappingNode)
        pairs = {key.value: (key, child) for key, child in node.value}
        last = depth == len(parts) - 1
        if part not in pairs and (not last or parts[:-1] == ["criteria"]):
            raise DanqingError(f"--set {setting}: no {part!r} in the recipe; {did_you_mean(part, pairs)}")
        if not last:
            node = pairs[part][1]
            if not isinstance(node, yaml.MappingNode):
                raise DanqingError(f"--set {setting}: {part!r} has no keys of its own")
        elif leaf.tag == "tag:yaml.org,2002:null":  # words.max=null takes the bound away
            pairs.pop(part, None)
        else:
            key = yaml.ScalarNode("tag:yaml.org,2002:str", part, start_mark=leaf.start_mark)
            pairs[part] = (key, leaf)
        if last:
            node.value = list(pairs.values())


def _place(node: yaml.Node, where: str) -> str:
    mark = node.start_mark
    if mark is not None and mark.line < 0:
        return str(mark.name)  # a --set on the command line
    return f"{where}:{mark.line + 1}" if mark is not None else where


def _mapping(node: yaml.Node, where: str, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise DanqingError(f"{_place(node, where)}: {what} must be a mapping of key: value")
    seen: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if key.value in seen:
            raise DanqingError(f"{_place(key, where)}: {key.value!r} stands here twice")
        seen[key.value] = (key, value)
    return seen


def _scalar(node: yaml.Node, where: str, name: str, kind: type) -> Any:
    value = yaml.SafeLoader("").construct_object(node, deep=True)
    if kind is float:
        with contextlib.suppress(TypeError, ValueError):  # YAML 1.1 reads 6e-4 as text
            value = value if isinstance(value, bool) else float(value)
    right = isinstance(value, kind) and not isinstance(value, bool)
    if not right:
        wanted = "a number" if kind is float else "text"
        raise DanqingError(f"{_place(node, where)}: {name} must be {wanted}, not {value!r}")
    return kind(value)


def _refuse_unknown(keys: Mapping[str, tuple[yaml.Node, yaml.Node]], known: Iterable[str], where: str, of: str) -> None:
    known = list(known)
    for name, (key, _) in keys.items():
        if name not in known:
            raise DanqingError(f"{_place(key, where)}: unknown key {name!r} in {of}; {did_you_mean(name, known)}")


def _read(tree: yaml.Node, where: str, columns: set[str], known_roles: set[str]) -> Recipe:
    top = _mapping(tree, where, "a recipe")
    _refuse_unknown(top, TOP_KEYS, where, "the recipe")
    for needed in ("recipe", "criteria"):
        if needed not in top:
            raise DanqingError(f"{where}: the key {needed!r} is missing")
    models: dict[str, str] = {}
    if "models" in top:
        roles = _mapping(top["models"][1], where, "'models'")
        if known_roles:
            _refuse_unknown(roles, known_roles, where, "models")
        models = {role: _scalar(node, where, f"models.{role}", str) for role, (_, node) in roles.items()}
    also = _read_also(top["also"][1], where, columns) if "also" in top else ()
    listed = _mapping(top["criteria"][1], where, "'criteria'")
    if not listed:
        raise DanqingError(f"{_place(top['criteria'][1], where)}: a recipe needs at least one criterion")
    return Recipe(
        name=_scalar(top["recipe"][1], where, "recipe", str),
        description=_scalar(top["description"][1], where, "description", str) if "description" in top else "",
        models=models,
        also=also,
        criteria=tuple(_read_criterion(name, key, node, where, columns) for name, (key, node) in listed.items()),
    )


def _read_also(node: yaml.Node, where: str, columns: set[str]) -> tuple[str, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise DanqingError(f"{_place(node, where)}: 'also' is a list of columns, for example [sha256, perceptual_hash]")
    names = tuple(_scalar(item, where, "a column of 'also'", str) for item in node.value)
    for name in names:
        if columns and name not in columns:
            raise DanqingError(
                f"{_place(node, where)}: no stage computes a column {name!r}; {did_you_mean(name, columns)}"
            )
    return tuple(dict.fromkeys(names))


def _read_criterion(name: str, key: yaml.Node, node: yaml.Node, where: str, columns: set[str]) -> AnyCriterion:
    fields = _mapping(node, where, f"criterion {name!r}")
    _refuse_unknown(fields, CRITERION_KEYS, where, f"criterion {name!r}")

    def text(field: str, default: str = "") -> str:
        return _scalar(fields[field][1], where, f"{name}.{field}", str) if field in fields else default

    def number(field: str) -> float | None:
        return _scalar(fields[field][1], where, f"{name}.{field}", float) if field in fields else None

    within, bounds = number("within"), {attribute: number(word) for word, attribute in BOUNDS.items()}
    labels = {"name": name, "group": text("group"), "step": text("step")}

    def refuse_both(word: str, mixed: Iterable[str], what: str) -> None:
        for other in mixed:
            if other in fields:
                raise DanqingError(
                    f"{_place(fields[other][0], where)}: {name}: {word} {what}, which takes no {other!r}"
                )

    criterion: AnyCriterion
    try:
        if within is not None:
            refuse_both("'within' makes it", BOUNDS, "a redundancy criterion")
            if "not_near" in fields:
                refuse_both(
                    "'not_near' makes it", ("column", "keep", "max_diameter", "recall"), "a distance to another run"
                )
                return Apart(within=within, folder=text("not_near"), **labels)
            criterion = Redundancy(
                within=within,
                column=text("column", FEATURES),
                keep=text("keep"),
                max_diameter=number("max_diameter"),
                recall=1.0 if (recall := number("recall")) is None else recall,
                **labels,
            )
        else:
            refuse_both("without 'within' it is", REDUNDANCY_KEYS, "a criterion of one score")
            criterion = Criterion(column=text("column", name), interval=Interval(**bounds), **labels)
    except ValueError as problem:
        at = next((fields[w][0] for w in (*BOUNDS, *REDUNDANCY_KEYS) if w in fields), key)
        raise DanqingError(f"{_place(at, where)}: {name}: {problem}") from None
    given = () if isinstance(criterion, Criterion) else (FEATURES,)
    for column in criterion.columns:
        if columns and column not in (*columns, *given):
            word = "column" if column == criterion.column else "keep"
            place = _place(fields[word][1] if word in fields else key, where)
            raise DanqingError(f"{place}: no stage computes a column {column!r}; {did_you_mean(column, columns)}")
    return criterion
