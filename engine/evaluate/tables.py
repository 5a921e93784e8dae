"""The paper's tables as data: which data sets they have, their figures, and the averages of ours beside them."""

from __future__ import annotations

import math
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
        metric: of the paper's figures.
        elevater: ELEVATER's metric.
        topic: of its templates.
        figures: model → the paper's figure, in percent; empty where it is only in an average.
    """

    name: str
    metric: str
    elevater: str
    topic: str
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
def _read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def _plain(name: str) -> str:
    return AROUND.sub("", re.sub("[^a-z0-9]", "", name.lower()))


@cache
def known(name: str) -> Known | None:
    """Finds a data set of the paper's tables by the name of its folder.

    >>> known("oxford-flower-102").name, known("vtab_flowers").elevater
    ('Flowers102', 'mean_per_class_recall')
    """
    content = _read("tables.yaml")
    for table in content["tables"].values():
        for title, entry in table["sets"].items():
            if _plain(name) in entry["aliases"]:
                figures = dict(zip(content["models"], entry.get("figures", ()), strict=False))
                elevater, topic = entry.get("elevater", table["metric"]), entry.get("topic", GENERAL)
                return Known(title, table["metric"], elevater, topic, figures)
    return None


def templates_for(name: str, chinese: bool) -> tuple[str, ...]:
    """Returns the templates of a data set: its topic's, else the general ones, with `{c}`.

    Args:
        name: of its folder.
        chinese: whether its classes have Chinese names.
    """
    found = known(name)
    topic = found.topic if found else _read("tables.yaml")["others"].get(_plain(name), GENERAL)
    return tuple(_read("templates.yaml")[topic if chinese else ENGLISH])


def averages(values: Iterable[tuple[str, Mapping[str, float]]]) -> list[Average]:
    """Makes the paper's averages of which there is at least one data set.

    Args:
        values: of one model, name of a data set's folder and its metrics from 0 to 1.

    Returns:
        The paper's average of each table, by the paper's metric; for classification also by ELEVATER's.
    """
    rows = {found.name: (found, metrics) for name, metrics in values if (found := known(name))}
    result = []
    for table in _read("tables.yaml")["tables"].values():
        there = [name for name in table["sets"] if name in rows]
        paper, elevater = [table["metric"]] * len(there), [rows[name][0].elevater for name in there]
        ways = [(table["title"], paper, table["average"])]
        if elevater != paper:
            ways.append(("the same, each set by ELEVATER's metric", elevater, {}))
        for title, metrics, figures in ways if there else ():
            numbers = [rows[name][1].get(metric, math.nan) for name, metric in zip(there, metrics, strict=True)]
            missing = tuple(name for name in table["sets"] if name not in rows)
            complete = not missing and not any(map(math.isnan, numbers))
            value = sum(numbers) / len(numbers) if complete else None
            result.append(Average(title, tuple(there), missing, value, figures))
    return result
