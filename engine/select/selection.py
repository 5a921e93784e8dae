"""SELECT: applies the criteria of a recipe that need no picture, before the pictures are downloaded.

tables of URLs and captions → text stages and gates → urls/NNNNN.parquet (kept) + verdicts/NNNNN.parquet (all)

The stages, gates and verdicts are those of SCORE and DECIDE. Rows are read, scored, decided and written in parts, so
memory does not grow with the input.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from danqing.engine.core.carried import carried_name
from danqing.engine.core.damage import Damage, from_metadata, write_damage
from danqing.engine.core.device import open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import is_unused, write_json
from danqing.engine.core.progress import OpenProgress, Progress, silent
from danqing.engine.core.spans import Spans
from danqing.engine.core.storage import fetch_ahead
from danqing.engine.decide.funnel import Funnel
from danqing.engine.recipe.reading import Recipe, recipe_from_dict
from danqing.engine.run.folder import identity_differences, resume_with_versions
from danqing.engine.run.lock import lock_output
from danqing.engine.run.settings import Settings
from danqing.engine.run.versions import ENGINE, current_versions
from danqing.engine.score.settling import unify
from danqing.engine.select import libcudf_tables
from danqing.engine.select.parts import PartFiles, WriterThread
from danqing.engine.select.text_plan import CLEAN, TextPlan
from danqing.engine.sources import Shard
from danqing.engine.sources.tables import Columns, Part, check_tables, choose_columns, count_rows, find_tables

PART_ROWS = 100_000
"""Rows of an output file."""


@dataclass(frozen=True)
class Selection:
    """A finished selection.

    Attributes:
        folder: holds urls/, verdicts/, funnel.json and select.json.
        funnel: rows kept and dropped, per criterion.
        spans: counts and times of the stages; empty if the selection was finished before.
        columns: the names of the URL and caption columns.
        deferred_criteria: names of the recipe's criteria that need a picture.
    """

    folder: Path
    funnel: Funnel
    spans: Spans
    columns: Columns
    deferred_criteria: tuple[str, ...]

    @property
    def urls(self) -> Path:
        """The folder of the kept rows, in Parquet."""
        return self.folder / "urls"

    def download_command(self) -> str:
        """Returns the command line of img2dataset that downloads the kept rows, without re-encoding the pictures."""
        arguments = {
            "url_list": str(self.urls),
            "input_format": "parquet",
            "url_col": self.columns.url,
            "caption_col": self._caption,
            "output_format": "webdataset",
            "output_folder": str(self.folder / "images"),
            "disable_all_reencoding": "True",
        }
        if names := self._extra_columns():
            arguments["save_additional_columns"] = json.dumps(names, ensure_ascii=False, separators=(",", ":"))
        return shlex.join(["img2dataset", *(word for key, value in arguments.items() for word in (f"--{key}", value))])

    @property
    def _caption(self) -> str:
        """The column of urls/ with the caption as read, so that CURATE measures what SELECT measured."""
        paths = sorted(self.urls.glob("*.parquet"))
        stored = carried_name(self.columns.caption, (CLEAN,))
        return stored if paths and stored in pq.read_schema(paths[0]).names else self.columns.caption

    def _extra_columns(self) -> list[str]:
        """Lists the input columns that every part has and that img2dataset does not write itself."""
        schemas = [pq.read_schema(path).names for path in sorted(self.urls.glob("*.parquet"))]
        common = set.intersection(*map(set, schemas)) if schemas else set()
        taken = {*IMG2DATASET_COLUMNS, CLEAN, self.columns.url, self._caption}
        return [name for name in (schemas[0] if schemas else ()) if name in common - taken]


IMG2DATASET_COLUMNS = (
    "url", "caption", "key", "shard_id", "status", "error_message", "width", "height", "original_width",
    "original_height", "exif", "md5", "sha256", "sha512",
)  # fmt: skip
"""The columns that img2dataset writes."""


@lock_output
def select(
    inputs: Iterable[str],
    output: Path,
    recipe: Recipe,
    columns: Columns | None = None,
    settings: Settings | None = None,
    progress: OpenProgress = silent,
) -> Selection:
    """Applies the recipe's criteria that need no picture to every row of the tables; writes the kept rows.

    An interrupted selection is resumed after its last complete part. A finished selection is not changed.

    Args:
        inputs: paths or patterns of Parquet, CSV and JSON Lines files.
        output: the folder to write to.
        recipe: its criteria that need a picture are not applied.
        columns: the names of the URL and caption columns; None, or a name that is empty: the first of `URL_COLUMNS`
            or `CAPTION_COLUMNS` that the first table has.
        settings: the device, threads, block list, user dictionaries, and whether links are followed; None: the
            defaults.

    Raises:
        DanqingError: the settings limit the memory, a table cannot be read, every criterion needs a picture, or
            `output` holds something else or a selection with other settings.
    """
    settings = settings or Settings()
    if settings.memory_limit:
        raise DanqingError(
            f"memory_limit: select has no limit of memory; it holds the parts of {PART_ROWS:,} rows that its threads "
            "work on, so give it fewer threads"
        )
    damage: list[Damage] = []
    files = find_tables(inputs, settings.layout.follow_links, damage)
    columns = choose_columns(files, columns or Columns("", ""))
    if settings.limit is None:  # a limited selection opens no table that it does not need
        check_tables(files, columns)
    plan = TextPlan.of(recipe)
    deferred = tuple(c.name for c in recipe.criteria if c not in plan.recipe.criteria)
    identity = {
        "inputs": [[str(file.path.resolve()), file.bytes] for file in files],
        "columns": asdict(columns),
        "models": {role: plan.models.card(role).hash for role in plan.recipe.models},
        **settings.rules(),
        "part_rows": PART_ROWS,
        "limit": settings.limit,
    }
    _create_or_resume(output, plan.recipe, identity, settings.force)
    spans = Spans()
    if not (output / "funnel.json").exists():
        total = sum(file.bytes for file in files) if settings.limit is None else 0
        with open_device(settings.device, settings.threads) as device, progress("select", total, "rows") as listener:
            parts = PartFiles(output, plan.criteria, columns, device)
            with WriterThread(parts.write) as writer:
                unfinished = _unfinished(files, settings.limit, parts, listener, spans)
                plan.run(unfinished, writer, settings, device, listener, spans)
        for kind in ("urls", "verdicts"):
            unify(paths := sorted((output / kind).glob("*.parquet")))
            for path in paths:
                damage += from_metadata(pq.read_schema(path).metadata)
        write_damage(output, damage)
        write_json(output / "funnel.json", count_funnel(output, plan.criteria).to_dict())
    return Selection(output, Funnel.read(output / "funnel.json"), spans, columns, deferred)


def _unfinished(
    files: Iterable[Shard], limit: int | None, parts: PartFiles, progress: Progress, spans: Spans
) -> Iterator[tuple[int, Part]]:
    """Yields the parts of the tables that are not written, with their numbers, up to `limit` rows in all.

    The rows of a Parquet file's first parts are not read again if these parts are written.
    """
    number, left = 0, sys.maxsize if limit is None else limit
    for file in fetch_ahead(files, lambda file: file.path) if limit is None else files:
        if left == 0:
            return
        rows, there, skipped = min(PART_ROWS, left), min(count_rows(file), left), 0
        while skipped < there and parts.is_written(number):
            number, skipped = number + 1, min(skipped + rows, there)
        progress.expect(skipped, file.bytes * skipped // max(there, 1))
        progress.advance(skipped)
        left -= skipped
        rest = libcudf_tables.read(file, parts.columns, rows, parts.device, skipped) if left else ()
        for part in spans.timed("read", rest):
            head = part.head(min(len(part), left))
            progress.expect(len(head), head.bytes)
            if parts.is_written(number):
                progress.advance(len(head))
            else:
                yield number, head
            number, left = number + 1, left - len(head)
            if left == 0:
                return


def count_funnel(folder: Path, recipe: Recipe) -> Funnel:
    """Counts the funnel of all parts, from the verdicts on disk."""
    criteria = pa.array([criterion.name for criterion in recipe.criteria])
    total = Funnel.count(recipe, np.empty(0, int))
    for path in sorted((folder / "verdicts").glob("*.parquet")):
        names = pq.read_table(path, columns=["dropped_by"])["dropped_by"]
        dropped_by = pc.fill_null(pc.index_in(names, value_set=criteria), -1).to_numpy()
        part = Funnel.count(recipe, dropped_by)
        lines = (
            replace(line, left=line.left + other.left, dropped=line.dropped + other.dropped)
            for line, other in zip(total.lines, part.lines, strict=True)
        )
        total = Funnel(total.recipe, total.collected + part.collected, tuple(lines))
    return total


def _create_or_resume(folder: Path, recipe: Recipe, identity: dict[str, Any], force: bool) -> None:
    """Writes select.json to an empty folder; in a folder that has one, checks that its content is the same.

    Raises:
        DanqingError: the folder holds something else, or a selection with other settings or tables.
    """
    path = folder / "select.json"
    if not path.exists():
        if not is_unused(folder):
            raise DanqingError(f"{folder}: not empty and not a selection (no select.json); choose another folder")
        versions = current_versions()
        write_json(path, {"engine": versions[ENGINE], "versions": versions, "recipe": recipe.to_dict(), **identity})
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        differences = recipe.differences(recipe_from_dict(stored["recipe"], str(path)))
    except (ValueError, KeyError, TypeError) as problem:
        raise DanqingError(f"{path}: cannot be read: {problem}; remove {folder} to start over") from None
    differences += identity_differences(stored, identity)
    if differences:
        listed = "\n  ".join(differences)
        raise DanqingError(
            f"{folder} holds a selection with other settings:\n  {listed}\n"
            "Choose another --output, or remove the folder to start over."
        )
    started = any((folder / "verdicts").glob("*.parquet")) and not (folder / "funnel.json").exists()
    if started and resume_with_versions(folder, stored, force):
        write_json(path, stored)
