"""Recipe: the models and the ordered criteria, read from YAML and checked line by line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from danqing.engine.core.columns import FEATURES, RECIPE_COLUMNS, Column
from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.storage import path_of
from danqing.engine.core.user_yaml import LimitedLoader, describe_yaml_error, read_user_file
from danqing.engine.recipe.criteria import KINDS, Criterion, FieldError, Judgment, OwnColumn, Pattern, Redundancy

DEFAULT_RECIPE = "embedded"
TOP_KEYS = ("recipe", "description", "models", "also", "criteria")


@dataclass(frozen=True)
class Recipe:
    """The models and the ordered criteria; immutable, and read back from `to_dict` without loss.

    Attributes:
        name: the key `recipe`.
        models: role → model card.
        criteria: in the order in which they are applied.
        description: one sentence.
        also: columns that are computed and stored though no criterion reads them.
    """

    name: str
    models: Mapping[str, str]
    criteria: tuple[Criterion, ...]
    description: str = ""
    also: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of scores/*.parquet that the criteria read, by name."""
        return tuple(sorted({column for criterion in self.criteria for column in criterion.columns} - {FEATURES}))

    @property
    def near_duplicates(self) -> tuple[Redundancy, ...]:
        """The criteria that compare the rows' features."""
        found = (criterion for criterion in self.criteria if isinstance(criterion, Redundancy))
        return tuple(criterion for criterion in found if criterion.column == FEATURES)

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The criteria that count matches of regular expressions."""
        return tuple(criterion for criterion in self.criteria if isinstance(criterion, Pattern))

    @property
    def judgments(self) -> tuple[Judgment, ...]:
        """The criteria that ask a vision-language model."""
        return tuple(criterion for criterion in self.criteria if isinstance(criterion, Judgment))

    @property
    def with_own_columns(self) -> tuple[OwnColumn, ...]:
        """The criteria that SCORE computes a column for, which has their name: patterns and questions."""
        return (*self.patterns, *self.judgments)

    def to_dict(self) -> dict[str, Any]:
        """The recipe in the layout of its YAML file, with the thresholds in force."""
        return {
            "recipe": self.name,
            "description": self.description,
            "models": dict(self.models),
            "also": list(self.also),
            "criteria": {c.name: {"section": c.section, "step": c.step} | c.to_dict() for c in self.criteria},
        }

    @property
    def hash(self) -> str:
        """16 hex digits of the models and criteria; comments, layout and `also` do not change it."""
        content = {key: value for key, value in self.to_dict().items() if key in ("models", "criteria")}
        text = json.dumps([content, list(content["criteria"])], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: Recipe) -> list[str]:
        """The differences of another recipe (`there`) from this one (`here`), one sentence each."""
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


def builtin_names() -> list[str]:
    """The names of the recipes that come with the engine."""
    return sorted(
        p.name[:-5]
        for p in (resources.files("danqing.engine.recipe") / "recipes").iterdir()
        if p.name.endswith(".yaml")
    )


def load_recipe(
    name_or_path: str | Path,
    settings: Iterable[str] = (),
    columns: Mapping[str, Column] = RECIPE_COLUMNS,
    roles: Iterable[str] = (),
) -> Recipe:
    """Reads a built-in recipe by name or a YAML file by path, applies `settings`, and checks the result.

    Args:
        name_or_path: the name of a built-in recipe (`builtin_names`) or a file.
        settings: `words.max=40`, `models.image_embedding=my-clip`: dotted path, equals, YAML value.
        columns: the columns that the recipe can name; with other packages' stages, `engine.stages.columns`.
        roles: the roles that stages have a model for; if given, every key under `models` must be one.

    Returns:
        The recipe.

    Raises:
        DanqingError: the recipe cannot be read or used; names the file, the line and the nearest valid name.

    >>> load_recipe("embedded", ["words.max=40"]).criteria[2].rule
    '5 ≤ words ≤ 40'
    """
    path = path_of(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        text, where = read_user_file(path, "recipe"), str(path)
    elif str(name_or_path) in builtin_names():
        where = f"{name_or_path}.yaml"
        text = (resources.files("danqing.engine.recipe") / "recipes" / where).read_text(encoding="utf-8")
    else:
        raise DanqingError(
            f"no recipe {str(name_or_path)!r}: {did_you_mean(str(name_or_path), builtin_names())}; "
            "or give the path of a .yaml file"
        )
    return _read(text, where, settings, columns, set(roles))


def recipe_from_dict(
    content: Mapping[str, Any],
    where: str,
    settings: Iterable[str] = (),
    columns: Mapping[str, Column] | None = None,
    roles: Iterable[str] = (),
) -> Recipe:
    """Reads a recipe from `Recipe.to_dict`, as run.json stores it, and applies `settings`.

    Args:
        content: the recipe.
        where: the file that messages name.
        settings: see `load_recipe`.
        columns: the columns that the recipe can name; None leaves the criteria unchecked, for a recipe that was
            checked before it was stored.
        roles: see `load_recipe`.

    Raises:
        DanqingError: as `load_recipe`.
    """
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    return _read(text, where, settings, columns, set(roles))


def _compose(text: str, where: str) -> yaml.Node:
    try:
        tree = yaml.compose(text, Loader=LimitedLoader)
    except yaml.YAMLError as problem:
        raise DanqingError(describe_yaml_error(where, problem)) from None
    if not isinstance(tree, yaml.MappingNode):
        raise DanqingError(f"{where}: a recipe is a mapping with the keys {', '.join(TOP_KEYS)}")
    return tree


def _apply(tree: yaml.Node, setting: str) -> None:
    """Changes the tree by a setting, `words.max=40`. Names of keys are checked later, with the file's."""
    path, equals, value = setting.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise DanqingError(f"--set {setting}: write it as criterion.key=value, for example words.max=40")
    if parts[0] not in TOP_KEYS:
        parts.insert(0, "criteria")
    try:
        leaf = yaml.compose(value, Loader=LimitedLoader) or yaml.ScalarNode("tag:yaml.org,2002:null", "")
    except yaml.YAMLError:
        raise DanqingError(f"--set {setting}: {value!r} is not a YAML value") from None
    for place in (leaf, *(leaf.value if isinstance(leaf, yaml.SequenceNode) else ())):
        place.start_mark = yaml.Mark(f"--set {setting}", 0, -1, 0, None, 0)
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
                raise DanqingError(f"--set {setting}: {part!r} has no keys")
        elif leaf.tag == "tag:yaml.org,2002:null":  # words.max=null removes the bound
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
        if not isinstance(key, yaml.ScalarNode):
            raise DanqingError(f"{_place(key, where)}: a key of {what} is a name, not a list or a mapping")
        if key.value in seen:
            raise DanqingError(f"{_place(key, where)}: {key.value!r} is here twice")
        seen[key.value] = (key, value)
    return seen


def _scalar(node: yaml.Node, where: str, name: str, kind: type) -> Any:
    value: Any = None
    if isinstance(node, yaml.ScalarNode):
        # A date that does not exist, a number of thousands of digits or an unknown tag stays text.
        value = node.value
        with contextlib.suppress(ValueError, yaml.YAMLError):
            value = yaml.SafeLoader("").construct_object(node)
    if kind is float:
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # YAML 1.1 reads 6e-4 as text
            value = value if isinstance(value, bool) else float(value)
    right = isinstance(value, kind) and not isinstance(value, bool)
    if not right:
        wanted = {float: "a number", int: "a whole number"}.get(kind, "text")
        found = reprlib.repr(value) if isinstance(node, yaml.ScalarNode) else "a list or a mapping"
        raise DanqingError(f"{_place(node, where)}: {name} must be {wanted}, not {found}")
    return kind(value)


def _texts(node: yaml.Node, where: str, name: str, kind: type) -> tuple[str, ...]:
    """Reads a text, or a list of at least one."""
    if not isinstance(node, yaml.SequenceNode):
        return (_scalar(node, where, name, str),)
    if not node.value:
        raise DanqingError(f"{_place(node, where)}: {name} must be a text or a list of texts, not an empty list")
    return tuple(_scalar(item, where, f"a value of {name}", str) for item in node.value)


def _texts_by_key(node: yaml.Node, where: str, name: str, kind: type) -> dict[str, str]:
    """Reads a mapping of texts."""
    return {key: _scalar(value, where, f"{name}.{key}", str) for key, (_, value) in _mapping(node, where, name).items()}


def _refuse_unknown(keys: Mapping[str, tuple[yaml.Node, yaml.Node]], known: Iterable[str], where: str, of: str) -> None:
    known = list(known)
    for name, (key, _) in keys.items():
        if name not in known:
            raise DanqingError(f"{_place(key, where)}: unknown key {name!r} in {of}; {did_you_mean(name, known)}")


def _read(
    text: str, where: str, settings: Iterable[str], columns: Mapping[str, Column] | None, known_roles: set[str]
) -> Recipe:
    tree = _compose(text, where)
    for setting in settings:
        _apply(tree, setting)
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
    listed = _mapping(top["criteria"][1], where, "'criteria'")
    if not listed:
        raise DanqingError(f"{_place(top['criteria'][1], where)}: a recipe needs at least one criterion")
    if columns is not None:  # other criteria can name the columns of patterns and of answers
        made = {
            name: kind.column_named(name)
            for kind in (Pattern, Judgment)
            for name, (_, node) in listed.items()
            if kind.marker in _fields(name, node, where)
        }
        columns = made | dict(columns)
    also = _read_also(top["also"][1], where, columns) if "also" in top else ()
    return Recipe(
        name=_scalar(top["recipe"][1], where, "recipe", str),
        description=_scalar(top["description"][1], where, "description", str) if "description" in top else "",
        models=models,
        also=also,
        criteria=tuple(_read_criterion(name, key, node, where, columns) for name, (key, node) in listed.items()),
    )


def _read_also(node: yaml.Node, where: str, columns: Mapping[str, Column] | None) -> tuple[str, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise DanqingError(f"{_place(node, where)}: 'also' is a list of columns, for example [sha256, perceptual_hash]")
    names = tuple(_scalar(item, where, "a column of 'also'", str) for item in node.value)
    if columns is not None:
        stored = [column.name for column in columns.values() if column.type is not None]
        for name in names:
            if name not in stored:
                raise DanqingError(
                    f"{_place(node, where)}: no stage stores a column {name!r}; {did_you_mean(name, stored)}"
                )
    return tuple(dict.fromkeys(names))


def _fields(name: str, node: yaml.Node, where: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    return _mapping(node, where, f"criterion {name!r}")


_READERS: dict[type, Callable[[yaml.Node, str, str, type], Any]] = {tuple: _texts, dict: _texts_by_key}


def _read_criterion(
    name: str, key: yaml.Node, node: yaml.Node, where: str, columns: Mapping[str, Column] | None
) -> Criterion:
    fields = _fields(name, node, where)
    labels: dict[str, type] = {"section": str, "step": str}
    _refuse_unknown(
        fields, dict.fromkeys([*labels, *(word for kind in KINDS for word in kind.keys)]), where, f"criterion {name!r}"
    )
    kind = next(kind for kind in KINDS if not kind.marker or kind.marker in fields)
    types = labels | kind.keys
    for word, (at, _) in fields.items():
        if word not in types:
            cause = f"{kind.marker!r} makes it" if kind.marker else "without 'within', 'pattern' or 'vlm' it is"
            raise DanqingError(f"{_place(at, where)}: {name}: {cause} {kind.kind}, which takes no {word!r}")
    values: dict[str, Any] = {
        word: _READERS.get(types[word], _scalar)(value, where, f"{name}.{word}", types[word])
        for word, (_, value) in fields.items()
    }
    section, step = (values.pop(label, "") for label in labels)
    try:
        criterion = kind.read(name, values, section, step)
        if columns is not None:
            criterion.check(columns)
    except ValueError as problem:
        words = [problem.key] if isinstance(problem, FieldError) else [*kind.keys]
        at = next((fields[word][0] for word in words if word in fields), key)
        raise DanqingError(f"{_place(at, where)}: {name}: {problem}") from None
    return criterion
