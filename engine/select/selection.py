"""SELECT: applies the criteria of a recipe that need no picture, before the pictures are downloaded.

tables of URLs and captions → text stages and gates → urls/NNNNN.parquet (kept) + verdicts/NNNNN.parquet (all)

The stages, gates and verdicts are those of SCORE and DECIDE. Rows are read, scored, decided and written in parts, so
memory does not grow with the input.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.batch import Batch
from danqing.engine.core.carried import carried_name
from danqing.engine.core.columns import TABLE_COLUMNS
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit, is_unused, write_json
from danqing.engine.core.memory import TEXT_COPIES
from danqing.engine.core.progress import OpenProgress, Progress, silent
from danqing.engine.core.spans import Spans
from danqing.engine.core.strings import TextColumn
from danqing.engine.decide.funnel import Funnel
from danqing.engine.decide.scores import Scores
from danqing.engine.decide.verdicts import walk
from danqing.engine.recipe.criteria import Interval, RowCriterion, Threshold
from danqing.engine.recipe.plan import decidable, make_plan
from danqing.engine.recipe.reading import Recipe, recipe_from_dict
from danqing.engine.run.folder import identity_differences, resume_with_versions
from danqing.engine.run.lock import lock_output
from danqing.engine.run.settings import Settings
from danqing.engine.run.versions import ENGINE, current_versions
from danqing.engine.score.loop import run_stages
from danqing.engine.score.settling import unify
from danqing.engine.sources import Shard
from danqing.engine.sources.tables import Columns, Part, check_tables, choose_columns, find_tables, read_parts
from danqing.engine.stages import CATALOGUE
from danqing.trt_models.model_set import ModelSet

CLEAN = "text_clean"

USABLE = Threshold("usable", "usable", Interval(minimum=1), section="input", step="a URL and a caption")
"""Added before the recipe's criteria: 1 if the row could be read and has a URL and a caption."""
WEB_URL = re.compile(r"https?:[/\\]+[^/\\?#\s]", re.IGNORECASE)
"""The start of a URL that can be downloaded. Browsers read a backslash as a slash."""

SELECTED = {b"danqing.select": b"1"}
"""In the metadata of urls/*.parquet: `text_clean` is the engine's, so another selection makes it anew."""
PART_ROWS = 100_000
"""Rows of an output file."""
BATCH_ROWS = 2048


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
            "caption_col": self.columns.caption,  # as read: CURATE then measures what SELECT measured
            "output_format": "webdataset",
            "output_folder": str(self.folder / "images"),
            "disable_all_reencoding": "True",
        }
        if names := self._extra_columns():
            arguments["save_additional_columns"] = json.dumps(names, ensure_ascii=False, separators=(",", ":"))
        return shlex.join(["img2dataset", *(word for key, value in arguments.items() for word in (f"--{key}", value))])

    def _extra_columns(self) -> list[str]:
        """Lists the input columns that every part has and that img2dataset does not write itself."""
        schemas = [pq.read_schema(path).names for path in sorted(self.urls.glob("*.parquet"))]
        common = set.intersection(*map(set, schemas)) if schemas else set()
        taken = {*IMG2DATASET_COLUMNS, CLEAN, self.columns.url, self.columns.caption}
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
        settings: the device, threads, block list and user dictionaries; None: the defaults.

    Raises:
        DanqingError: a table cannot be read, every criterion needs a picture, or `output` holds something else or a
            selection with other settings.
    """
    settings = settings or Settings()
    files = find_tables(inputs)
    columns = choose_columns(files, columns or Columns("", ""))
    if settings.limit is None:  # a limited selection opens no table that it does not need
        check_tables(files, columns)
    text_recipe = before_download(recipe)
    deferred = tuple(c.name for c in recipe.criteria if c not in text_recipe.criteria)
    plan = make_plan(text_recipe, CATALOGUE, TABLE_COLUMNS, also=[CLEAN])
    models = ModelSet(text_recipe.models)
    identity = {
        "inputs": [[str(file.path.resolve()), file.bytes] for file in files],
        "columns": asdict(columns),
        "models": {role: models.card(role).hash for role in text_recipe.models},
        **settings.rules(),
        "part_rows": PART_ROWS,
        "limit": settings.limit,
    }
    _create_or_resume(output, text_recipe, identity, settings.force)
    spans = Spans()
    if not (output / "funnel.json").exists():
        criteria = replace(text_recipe, criteria=(USABLE, *text_recipe.criteria))
        total = sum(file.bytes for file in files) if settings.limit is None else 0
        with open_device(settings.device, settings.threads) as device, progress("select", total, "rows") as listener:
            context = settings.context(device, models, plan.wanted)
            for number, part in enumerate(spans.timed("read", _parts(files, columns, settings.limit))):
                listener.expect(len(part), part.bytes)
                urls, verdicts = (output / kind / f"{number:05d}.parquet" for kind in ("urls", "verdicts"))
                if verdicts.exists():  # written last, so this part is finished
                    listener.advance(len(part))
                    continue
                judged = Judged(part, plan.scores, device, listener)
                run_stages(judged.batches(), plan, context, judged, spans)
                dropped_by = judged.dropped_by(criteria)
                _write(urls, judged.kept(dropped_by < 0))
                _write(verdicts, judged.verdicts(dropped_by, criteria))
        for kind in ("urls", "verdicts"):
            unify(sorted((output / kind).glob("*.parquet")))
        write_json(output / "funnel.json", count_funnel(output, criteria).to_dict())
    return Selection(output, Funnel.read(output / "funnel.json"), spans, columns, deferred)


def _parts(files: Iterable[Shard], columns: Columns, limit: int | None) -> Iterator[Part]:
    """Yields the tables in parts, up to `limit` rows in all."""
    left = sys.maxsize if limit is None else limit
    for file in files:
        for part in read_parts(file, columns, min(PART_ROWS, left)):
            yield (head := part.head(min(len(part), left)))
            left -= len(head)
            if left == 0:
                return


def before_download(recipe: Recipe) -> Recipe:
    """Returns the recipe without the criteria and models that need a picture.

    Raises:
        DanqingError: every criterion needs a picture.
    """
    text_recipe = decidable(recipe, CATALOGUE, TABLE_COLUMNS)
    # Near-duplicate search compares all rows, and SELECT has one part in memory.
    text_recipe = replace(text_recipe, criteria=tuple(c for c in text_recipe.criteria if isinstance(c, RowCriterion)))
    if not text_recipe.criteria:
        raise DanqingError(f"recipe {recipe.name}: every criterion needs a picture, so none can be applied here")
    image_roles = {stage.role for stage in CATALOGUE if stage.image_inputs}
    return replace(text_recipe, models={role: name for role, name in recipe.models.items() if role not in image_roles})


class Judged:
    """The rows of one part: yields them as batches, and receives them from the stages with their scores.

    Attributes:
        columns: name → (rows,): scores as float64 (NaN if missing) or object (None if missing), `usable` and `error`.
    """

    def __init__(self, part: Part, scores: dict[str, pa.DataType], device: Device, progress: Progress) -> None:
        self.part, self.scores, self.device, self.progress = part, scores, device, progress
        self.columns = {
            name: np.full(len(part), None, object) if pa.types.is_string(kind) else np.full(len(part), np.nan)
            for name, kind in scores.items()
        }
        pairs = zip(part.urls.to_pylist(), part.captions.to_pylist(), strict=True)
        errors = [part.errors.get(row) or _unusable(url, caption) for row, (url, caption) in enumerate(pairs)]
        self.columns["error"] = np.array(errors, object)
        self.columns[USABLE.column] = np.array([error is None for error in errors], float)

    def batches(self) -> Iterator[Batch]:
        """Yields the usable rows."""
        usable = np.flatnonzero(self.columns[USABLE.column])
        self.progress.advance(len(self.part) - len(usable))
        for start in range(0, len(usable), BATCH_ROWS):
            rows = usable[start : start + BATCH_ROWS]
            urls, captions = self.part.urls.take(pa.array(rows)), self.part.captions.take(pa.array(rows))
            texts = {"url": TextColumn.of(urls), "caption": TextColumn.of(captions)}
            size = TEXT_COPIES * texts["caption"].lengths()
            yield Batch({"row": rows, **texts, "text_bytes": size, "error": [None] * len(rows)})

    def enter(self, batch: Batch, gated_at: str | None = None) -> None:
        """Takes rows that leave the stages; see `engine.score.loop.RowSink`."""
        for name, column in self.columns.items():
            if name in batch:
                values = batch[name].to_pylist() if isinstance(batch[name], TextColumn) else batch[name]
                column[batch["row"]] = np.array(values, column.dtype)
        self.progress.advance(len(batch))

    def dropped_by(self, recipe: Recipe) -> np.ndarray:
        """Decides every row as DECIDE does: int64 (rows,), the position of the criterion that drops it, or -1."""
        rows = len(self.part)
        unset, error = np.full(rows, -1), self.columns["error"] != np.array(None)
        columns = {name: pa.chunked_array([pa.array(self.columns[name], from_pandas=True)]) for name in recipe.columns}
        scores = Scores(unset, error, pa.nulls(rows, pa.string()), unset, [], columns, [rows])
        return walk(scores, recipe, self.device).dropped_by

    def kept(self, keep: np.ndarray) -> pa.Table:
        """Returns the kept rows with all input columns, and the clean caption.

        Args:
            keep: bool (rows,).
        """
        table = self.part.table.filter(pa.array(keep))
        if SELECTED.items() <= (table.schema.metadata or {}).items():  # an earlier selection's clean caption
            table = table.drop_columns([CLEAN])
            names = table.column_names
        else:
            names = _distinct(carried_name(name, (CLEAN,)) for name in table.column_names)
        table = table.rename_columns(names).append_column(CLEAN, pa.array(self.columns[CLEAN][keep], pa.string()))
        return table.replace_schema_metadata({**(table.schema.metadata or {}), **SELECTED})

    def verdicts(self, dropped_by: np.ndarray, recipe: Recipe) -> pa.Table:
        """Returns the table of verdicts: each row's place in the input, URL, caption, verdict and scores.

        Args:
            dropped_by: int64 (rows,), from the method `dropped_by`.
        """
        names = np.array([criterion.name for criterion in recipe.criteria] + [None], object)
        first, rows = self.part.first, len(self.part)
        table = {
            "file": pa.array([self.part.file.name] * rows, pa.string()),
            "row": pa.array(np.arange(first, first + rows)),
            "url": self.part.urls,
            "caption": self.part.captions,
            "keep": pa.array(dropped_by < 0),
            "dropped_by": pa.array(names[dropped_by], pa.string()),
        }
        if "uid" in self.part.table.column_names:
            table["uid"] = self.part.table["uid"]
        table |= {name: _arrow(self.columns[name], kind) for name, kind in self.scores.items() if name != CLEAN}
        return pa.table(table | {"error": pa.array(self.columns["error"], pa.string())})


def _distinct(names: Iterable[str]) -> list[str]:
    """Appends `_` to names that come again: Arrow reads tables with equal names, and no tool reads them by name."""
    out: list[str] = []
    for name in names:
        while name in out:
            name += "_"
        out.append(name)
    return out


def _unusable(url: str | None, caption: str | None) -> str | None:
    """Returns why a row is not usable, or None."""
    if not (url and url.strip()):
        return "no URL"
    if not WEB_URL.match(url.strip()):
        return f"not a URL of the web: {url.strip()[:80]}"
    return "no caption" if caption is None else None


def _arrow(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if values.dtype == object:
        return pa.array(values, kind)
    return pa.array(values, mask=np.isnan(values)).cast(kind)


def _write(path: Path, table: pa.Table) -> None:
    with commit(path) as file:
        pq.write_table(table, file)


def count_funnel(folder: Path, recipe: Recipe) -> Funnel:
    """Counts the funnel of all parts, from the verdicts on disk."""
    positions = {criterion.name: position for position, criterion in enumerate(recipe.criteria)} | {None: -1}
    total = Funnel.count(recipe, np.empty(0, int))
    for path in sorted((folder / "verdicts").glob("*.parquet")):
        names = pq.read_table(path, columns=["dropped_by"])["dropped_by"].to_pylist()
        part = Funnel.count(recipe, np.array([positions[name] for name in names], int))
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
