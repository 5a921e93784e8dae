"""The paper's tables as data: which data sets they have, their figures, and the averages of ours beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

FOLDER = resources.files("danqing.engine.evaluate")
AROUND = re.compile("^(wds|vtab)|clip$")
"""What packers put around the name of a data set."""
GENERAL, ENGLISH = "general", "english"


@dataclass(frozen=True)
class Known:
    """A data set of the paper's tables.

    Attributes:
        name: the paper's.
        table: key of the table.
        metric: of the paper's figures.
        elevater: ELEVATER's metric.
        figures: model → the paper's figure, in percent; empty where it is only in an average.
    """

    name: str
    table: str
    metric: str
    elevater: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Average:
    """An average that the paper gives, over one model's rows.

    Attributes:
        title: what it is the mean of.
        found: the data sets that there are.
        missing: those that there are not.
        value: the mean from 0 to 1; None unless all are there.
        figures: model → the paper's figure, in percent.
    """

    title: str
    found: tuple[str, ...]
    missing: tuple[str, ...]
    value: float | None
    figures: Mapping[str, float]


@cache
def _content() -> Any:
    return yaml.safe_load((FOLDER / "tables.yaml").read_text(encoding="utf-8"))


@cache
def _templates() -> dict[str, list[str]]:
    content: dict[str, list[str]] = yaml.safe_load((FOLDER / "templates.yaml").read_text(encoding="utf-8"))
    return content


def _tables() -> dict[str, Any]:
    return {key: value for key, value in _content().items() if isinstance(value, dict) and "sets" in value}


def _plain(name: str) -> str:
    return AROUND.sub("", re.sub("[^a-z0-9]", "", name.lower()))


@cache
def known(name: str) -> Known | None:
    """Finds a data set of the paper's tables by the name of its folder.

    >>> known("oxford-flower-102").name, known("vtab_flowers").elevater
    ('Flowers102', 'mean_per_class_recall')
    """
    for key, table in _tables().items():
        for title, entry in table["sets"].items():
            if _plain(name) in entry["aliases"]:
                figures = dict(zip(_content()["models"], entry.get("figures", ()), strict=False))
                return Known(title, key, table["metric"], entry.get("elevater", table["metric"]), figures)
    return None


def templates_for(name: str, chinese: bool) -> tuple[str, ...]:
    """Returns the templates of a data set: its topic's, else the general ones, with `{c}`.

    Args:
        name: of its folder.
        chinese: whether its classes have Chinese names.
    """
    topics = {_plain(alias): topic for alias, topic in _content()["others"].items()}
    for table in _tables().values():
        for entry in table["sets"].values():
            topics |= dict.fromkeys(entry["aliases"], entry.get("topic", GENERAL))
    return tuple(_templates()[topics.get(_plain(name), GENERAL) if chinese else ENGLISH])


def averages(values: Iterable[tuple[str, Mapping[str, float]]]) -> list[Average]:
    """Makes the paper's averages of which there is at least one data set.

    Args:
        values: of one model, name of a data set's folder and its metrics from 0 to 1.

    Returns:
        The paper's average of each table, by the paper's metric; for classification also by ELEVATER's.
    """
    rows = {found.name: (found, metrics) for name, metrics in values if (found := known(name))}
    result = []
    for table in _tables().values():
        names = tuple(table["sets"])
        there = tuple(name for name in names if name in rows)
        if not there:
            continue
        missing = tuple(name for name in names if name not in rows)
        ways = {table["title"]: [table["metric"]] * len(there)}
        own = [rows[name][0].elevater for name in there]
        if set(own) != {table["metric"]}:
            ways["the same, each set by ELEVATER's metric"] = own
        for title, metrics in ways.items():
            pairs = zip(there, metrics, strict=True)
            numbers = [number for name, metric in pairs if (number := rows[name][1].get(metric)) is not None]
            complete = not missing and len(numbers) == len(names)
            figures = table["average"] if metrics == [table["metric"]] * len(there) else {}
            result.append(Average(title, there, missing, sum(numbers) / len(names) if complete else None, figures))
    return result
