"""Data frames of other libraries: the verdicts of their rows, and the text measures of a caption column.

A frame or column comes from cuDF, pandas, polars or Arrow, and so does the result. The text of a cuDF column is
measured where it lies on the GPU. Other frames are read by their Arrow interface. No library is imported here that the
caller has not imported.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from danqing.engine.core import libcudf
from danqing.engine.core.batch_sizes import BATCH_SIZES
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.escape import valid_text
from danqing.engine.core.plain_tables import plain_column, text_of
from danqing.engine.core.progress import Silent
from danqing.engine.core.spans import Spans
from danqing.engine.core.strings import Strings
from danqing.engine.core.text_column import TextColumn
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from danqing.engine.select.ledger import Judged
from danqing.engine.select.text_plan import CLEAN, TextPlan
from danqing.engine.select.verdicts import decide, verdict_columns
from danqing.engine.sources import Shard
from danqing.engine.sources.tables import Columns, Part, name_columns, part_of
from danqing.engine.stages.characters import character_classes
from danqing.engine.stages.dictionary import open_dictionary
from danqing.kernels.text.captions import MEASURES, measure

FRAME = Shard(0, "frame", Path("frame"), 0)
"""Stands for the file in a part that comes from a frame, and in messages."""


def judge_frame(frame: Any, recipe: Recipe, columns: Columns, settings: Settings) -> Any:
    """Applies the criteria of a recipe that need no picture to every row of a frame.

    Args:
        frame: a frame of cuDF, pandas or polars, or an Arrow table; the device must be a GPU for cuDF.
        recipe: its criteria that need a picture are not applied.
        columns: the names of the URL and caption columns; empty: the usual names.
        settings: the device, threads, block list and user dictionaries.

    Returns:
        A frame of the same library with the same rows and index: `keep`, `dropped_by`, the scores and
        `error`, as in verdicts/*.parquet, and `text_clean`.

    Raises:
        DanqingError: a column is missing or holds no text, or every criterion needs a picture.
    """
    columns = name_columns(_column_names(frame), columns)
    plan, finished = TextPlan.of(recipe), list[Judged]()
    with open_device(settings.device, settings.threads) as device:
        part = _part(frame, columns, device)
        plan.run([(0, part)] if len(part) else [], finished.append, settings, device, Silent(), Spans())
        judged = finished[0] if finished else Judged(0, part, plan.stages.scores, device)
        dropped_by = decide(judged, plan.criteria, device)
        found = verdict_columns(judged, dropped_by, plan.criteria)
        return _frame_like(frame, pa.table(found | {CLEAN: judged.text(CLEAN).cast(pa.string())}))


def _column_names(frame: Any) -> list[str]:
    if isinstance(frame, pa.Table | pa.RecordBatch):
        return list(frame.schema.names)
    if library_of(frame) in ("cudf", "pandas", "polars") and type(frame).__name__ == "DataFrame":
        return list(map(str, frame.columns))
    kind = f"{library_of(frame)} {type(frame).__name__}"
    raise DanqingError(f"judge_frame takes a DataFrame of cuDF, pandas or polars, or an Arrow table, not {kind}")


def _part(frame: Any, columns: Columns, device: Device) -> Part:
    """Makes a part of a frame's rows, with only the columns that are judged."""
    url = _column(frame, columns.url, "url_col")
    caption = _column(frame, columns.caption, "caption_col")
    if library_of(frame) == "cudf":
        has_caption = caption.notna().values  # on cuDF's stream, for which `strings_of` waits
        urls, captions = (TextColumn.made(libcudf.strings_of(column), device) for column in (url, caption))
        return Part(FRAME, 0, pa.table({}), urls, captions, device.down(has_caption), {}, 0)
    texts = _text(url, columns.url, "url_col"), _text(caption, columns.caption, "caption_col")
    return part_of(FRAME, 0, pa.table(list(texts), names=["url", "caption"]), Columns())


def _column(frame: Any, name: str, argument: str) -> Any:
    names = _column_names(frame)
    if (count := names.count(name)) != 1:
        found = f"{count} columns {name!r}" if count else f"no column {name!r}"
        raise DanqingError(
            f"the frame has {found}; choose one with {argument}. It has: {', '.join(names) or 'no columns'}"
        )
    if isinstance(frame, pa.Table | pa.RecordBatch):
        return frame.column(names.index(name))
    return frame[list(frame.columns)[names.index(name)]]


def _text(column: Any, name: str, argument: str) -> pa.LargeStringArray:
    try:
        return arrow_text(column)
    except DanqingError as problem:
        raise DanqingError(f"column {name!r} of the frame {problem}; choose another with {argument}") from None


def measure_captions(captions: Any, device: Device, user_dictionaries: tuple[Path, ...] = ()) -> Any:
    """Measures captions as `measures_of` does; returns a frame of the captions' library with their index."""
    measures = measures_of(captions, device, user_dictionaries)
    if library_of(captions) == "cudf":
        return sys.modules["cudf"].DataFrame(measures, index=captions.index)
    return _frame_like(captions, pa.table(measures))


def measures_of(captions: Any, device: Device, user_dictionaries: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Computes every measure of `kernels.text.captions.MEASURES` for every caption, without cleaning it first.

    Args:
        captions: strings (rows,): a cuDF series if the device is a GPU, else a series of pandas or polars, an Arrow
            array or a sequence of str. A missing caption counts as empty.
        device: where the measures are computed.
        user_dictionaries: see `engine.stages.dictionary.open_dictionary`.

    Returns:
        Measure → float32 (rows,), on the device.

    >>> from danqing.engine.core.device import open_device
    >>> with open_device("cpu") as device:
    ...     measures_of(["一只橘猫趴在窗台上"], device)["words"].tolist()
    [4.0]
    """
    text, words, xp = strings_of(captions).on(device), open_dictionary(user_dictionaries), device.xp
    out = xp.empty((text.rows, len(MEASURES)), "float32")
    for start, part in text.parts(device, BATCH_SIZES[device.kind].frame_rows):
        out[start : start + part.rows] = measure(device, part, words, character_classes())
    measures = {name: xp.ascontiguousarray(out[:, column]) for column, name in enumerate(MEASURES)}
    device.wait()  # cuDF reads them on its own stream
    return measures


def strings_of(captions: Any) -> Strings:
    """Makes `Strings` of a column of any library; the text itself is not copied."""
    if library_of(captions) == "cudf":
        return libcudf.strings_of(captions)
    try:
        return Strings.of(arrow_text(captions))
    except DanqingError as problem:
        raise DanqingError(
            "measure_captions takes a series of cuDF, pandas or polars, an Arrow array, or a list of str; "
            f"the {type(captions).__name__} {problem}"
        ) from None


def arrow_text(column: Any) -> pa.LargeStringArray:
    """Converts a column of any library but cuDF to text; what is not UTF-8 and lone surrogates become U+FFFD.

    Raises:
        DanqingError: it holds something else; the message begins with a verb.
    """
    try:
        array = _arrow_array(column)
    except (pa.ArrowException, TypeError, ValueError) as problem:
        raise DanqingError(f"cannot be read: {problem}") from None
    array = array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
    if array.null_count == len(array):  # pandas reads a column without a value as numbers
        return pa.nulls(len(array), pa.large_string())
    if (text := text_of(plain_column(array))) is None:
        raise DanqingError(f"holds {array.type}, not text")
    return text


def _arrow_array(column: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return column
    if library_of(column) == "polars":
        return pa.chunked_array(column)
    if isinstance(column, str | bytes | dict) or type(column).__name__ == "DataFrame":
        raise TypeError("not a column")
    column = column if hasattr(column, "__len__") else list(column)
    try:
        return pa.array(column, from_pandas=True)
    except UnicodeEncodeError:
        return pa.array([valid_text(text) if isinstance(text, str) else text for text in column], from_pandas=True)


def library_of(frame: Any) -> str:
    """Returns the name of the package that a frame or a column comes from."""
    return type(frame).__module__.partition(".")[0]


def _frame_like(frame: Any, table: pa.Table) -> Any:
    """Converts a table to a frame of the library that `frame` comes from, with its index."""
    library = library_of(frame)
    if library == "polars":
        return sys.modules["polars"].from_arrow(table)
    if library not in ("cudf", "pandas"):
        return table
    made = sys.modules["cudf"].DataFrame.from_arrow(table) if library == "cudf" else table.to_pandas()
    made.index = frame.index
    return made
