"""Explains one pair: its scores with the criteria, and its verdict."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich import box
from rich.markup import escape
from rich.table import Table

from danqing.engine.core.columns import FEATURES
from danqing.engine.core.errors import DanqingError
from danqing.engine.decide.verdicts import SAVED
from danqing.engine.recipe.criteria import Redundancy, Threshold
from danqing.engine.recipe.reading import Recipe, recipe_from_dict
from danqing.engine.report.terminal import console
from danqing.engine.run.folder import Run
from danqing.engine.run.recaptions import recaptions_table
from danqing.engine.run.tables import decide_again, reading, scores_table, verdicts_table


def find_pairs(run: Run, key: str) -> list[dict[str, Any]]:
    """Returns every pair with that key (its own or the input's) or uid: its columns of scores and verdicts.

    Raises:
        DanqingError: the run has no such pair.
    """
    found = [record for shard in run.shards for record in _find(run, shard.number, key)]
    if not found:
        where = f" in the scored shards; {missing}" if (missing := run.unscored_shards()) else ""
        raise DanqingError(f"{run.folder}: no pair with key or uid {key!r}{where}")
    return found


def _find(run: Run, number: int, key: str) -> list[dict[str, Any]]:
    decided = "decided" in run.manifest
    if not decided and not run.scores_path(number).exists():
        return []
    identity = scores_table(run, number, ["key", "input_key", "uid"])
    equal = [pc.fill_null(pc.equal(column, key), False) for column in identity.columns]
    rows = pc.indices_nonzero(reduce(pc.or_, equal))
    if not len(rows):
        return []
    records = scores_table(run, number).take(rows).to_pylist()
    if decided:
        verdicts = verdicts_table(run, number).take(rows).to_pylist()
        records = [record | verdict for record, verdict in zip(records, verdicts, strict=True)]
        recaptions = recaptions_table(run, number)
        of_row = {record["row"]: record for record in recaptions.filter(pc.is_in(recaptions["row"], rows)).to_pylist()}
        for record in records:
            found = of_row.get(record["row"], {})
            record |= {
                name if name.startswith("recaption") else f"recaption_{name}": value
                for name, value in found.items()
                if name not in ("row", "uid")
            }
    return records


def print_pair(run: Run, record: dict[str, Any]) -> None:
    """Prints one pair of `find_pairs`: its caption, its scores with the criteria, and its verdict."""
    decided = run.manifest.get("decided")
    recipe = recipe_from_dict(decided["recipe"], "run.json") if decided else run.recipe
    place = f"row {record['row']}  key {record['key']}  uid {record['uid']}"
    console.print(f"\n[bold]{escape(record['shard'])}[/] {escape(place)}")
    for name in ("caption", "text_clean", "recaption", "recaption_outcome", "recaption_error", "url", "error"):
        if record.get(name):
            console.print(f"  {name}: ", record[name], markup=False, sep="")
    console.print(_criteria_table(recipe, record))
    judged = {criterion.column for criterion in recipe.criteria if isinstance(criterion, Threshold)}
    others = {
        name: value for name, value in record.items()
        if isinstance(value, (int, float)) and name not in judged | {"row", "group", "keep", "feature_row", "distance"}
    }  # fmt: skip
    if others:
        scores = ", ".join(f"{name} {_number(value)}" for name, value in others.items())
        console.print(f"  other scores: {scores}", markup=False)
    if record.get("gated_at"):
        place = f"from the stage {record['gated_at']!r} on"
        console.print(f"  not scored {place}: an earlier criterion dropped it", markup=False)
    if record.get("kept_instead"):
        name = _name(run, record["kept_instead"])
        console.print(f"  kept instead: {name}, distance {_number(record.get('distance'))}", markup=False)
    if otherwise := _otherwise(run, record):
        place = "this pair" if otherwise == record["uid"] else _name(run, otherwise)
        console.print(
            f"  without prefer: survivors, {place} would represent the group, and later criteria drop it", markup=False
        )
    if "keep" in record:
        verdict = "[green]kept[/]" if record["keep"] else f"[red]dropped by {escape(record['dropped_by'])}[/]"
        console.print(f"  {verdict}")


def _name(run: Run, uid: str) -> str:
    """Names the pair with a uid, if it is one of the run's."""
    found = next((record for shard in run.shards for record in _find(run, shard.number, uid)), None)
    return f"{found['shard']} key {found['key']}, uid {uid}" if found else uid


def _otherwise(run: Run, record: dict[str, Any]) -> str | None:
    """The uid of the pair that a surviving one represents the record's group in place of; None if there is none."""
    path = run.folder / SAVED
    if record.get("group", -1) < 0 or not path.exists():
        return None
    with reading(path, decide_again(run)):
        found: list[str] = pq.read_table(path, filters=[("group", "=", record["group"])])["uid"].to_pylist()
    return found[0] if found else None


def _criteria_table(recipe: Recipe, record: dict[str, Any]) -> Table:
    """Makes a table of the criteria in order, with the pair's score and whether it passes."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("criterion", "score", "rule", "verdict"):
        table.add_column(heading, no_wrap=heading == "criterion")
    gone = False
    for criterion in recipe.criteria:
        dropped, shown = record.get("dropped_by") == criterion.name, ""
        passed = not dropped
        if isinstance(criterion, Threshold):
            value = record.get(criterion.column)
            shown, passed = _number(value), value is not None and bool(criterion.interval.holds(value))
        elif isinstance(criterion, Redundancy):
            shown = "not compared" if gone else _group(criterion, record)
        verdict = "[red]dropped here[/]" if dropped else "" if gone else "passes" if passed else "?"
        gone = gone or dropped
        table.add_row(escape(criterion.name), escape(shown), escape(criterion.rule), verdict)
    return table


def _group(criterion: Redundancy, record: dict[str, Any]) -> str:
    """Names the pair's group of near-duplicates; a pair without the value that is compared has none."""
    if record.get("group", -1) >= 0:
        return f"group {record['group']}"
    known = record["feature_row"] >= 0 if criterion.column == FEATURES else record.get(criterion.column) is not None
    return "no group" if known else "not compared"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
