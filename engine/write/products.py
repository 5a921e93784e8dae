"""Products of the verdicts: which of the files in OUT are there, are complete and belong to the present verdicts.

The answer is derived from the files themselves. A shard's table carries the mark of the verdicts and options that the
shard was written by, and the sizes of its other files; texts end with a digest; kept_uids.npy is compared.

Products of earlier verdicts are moved to OUT/stale, not deleted: copying took hours, and the input may be gone. WRITE
takes shards back from there if their verdicts return, and deletes the rest when it is done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.decide.uids import numbers_of
from danqing.engine.run.folder import Run
from danqing.engine.write.output import (
    InputVerdicts,
    OutputShard,
    WriteOptions,
    decision_digest,
    output_shards,
    read_verdicts,
    verdicts_digest,
)

MARK, SIZES, EXTENSIONS = b"danqing.written", b"danqing.sizes", b"danqing.extensions"
"""Metadata of a shard's table: the mark of the shard (`OutputShard.mark`), JSON file name → size in bytes, and the
extensions of its pictures, a JSON list."""
STALE, CARD, COUNTS = "stale", "README.md", "sizes.json"
"""Folder of products of earlier verdicts; the dataset card; pairs of each tar, which open_clip reads."""
SHARD_FILE = re.compile(r"(\d{5,})\.\w+")
UID = np.dtype("u8,u8")
"""DataComp's type for lists of uids: the two halves of the 128-bit number."""
STAMP = "<!-- danqing: made from "
TAIL_BYTES = 400
"""The digest of a text product lies within its last bytes."""


def sizes(files: Iterable[Path]) -> bytes:
    """The sizes of files, as a shard's table records them."""
    return json.dumps({file.name: file.stat().st_size for file in sorted(files)}).encode()


def is_written(table: Path, shard: OutputShard) -> bool:
    """Whether a shard's files are on disk and complete, and belong to its verdicts and options.

    Args:
        table: path of the shard's table, which is written last.
    """
    metadata = _metadata(table)
    if metadata.get(MARK) != shard.mark.encode():
        return False
    files = [table.with_name(name) for name in json.loads(metadata.get(SIZES, b"{}"))]
    return all(file.exists() for file in files) and metadata.get(SIZES, b"{}") == sizes(files)


def _metadata(table: Path) -> dict[bytes, bytes]:
    try:
        return pq.read_schema(table).metadata or {}
    except (OSError, pa.ArrowException):
        return {}


def shard_files(run: Run) -> dict[int, list[Path]]:
    """The files of output shards by number, whatever they were written from."""
    found: dict[int, list[Path]] = {}
    for path in sorted(run.table_path(0).parent.glob("[0-9]*")):
        if name := SHARD_FILE.fullmatch(path.name):
            found.setdefault(int(name[1]), []).append(path)
    return found


def kept_uids(run: Run) -> np.ndarray:
    """The uids of the kept pairs: `UID` (pairs,), sorted."""
    numbers = [np.empty((0, 2), np.uint64)]
    for shard in run.shards:
        table = pq.read_table(run.verdicts_path(shard.number), columns=["uid", "keep"])
        numbers.append(numbers_of(table.filter(table["keep"])["uid"]))
    return np.sort(np.concatenate(numbers).view(UID).reshape(-1))


def uids_are_current(run: Run, uids: np.ndarray) -> bool:
    """Whether kept_uids.npy holds these uids."""
    try:
        return np.array_equal(np.load(run.folder / "kept_uids.npy"), uids)
    except (OSError, EOFError, ValueError):
        return False


def current_topics(run: Run, verdicts: list[InputVerdicts]) -> dict[str, Any] | None:
    """The content of topics.json; None if there is none, it cannot be read, or it was made from other verdicts."""
    try:
        found: dict[str, Any] = json.loads((run.folder / "topics.json").read_text(encoding="utf-8"))
        return found if found.get("verdicts") == verdicts_digest(verdicts) else None
    except (OSError, ValueError, AttributeError):
        return None


def stamp(digest: str) -> str:
    """The comment at the end of an HTML or Markdown product; says which decision it was made from."""
    return f"{STAMP}{digest} -->"


def is_stamped(path: Path, digest: str | None = None) -> bool:
    """Whether a text product is there and was made from a decision (`decision_digest`); None: from any."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return f"{STAMP}{digest or ''}".encode() in file.read()


def move_stale(run: Run) -> list[str]:
    """Moves the products of earlier verdicts to OUT/stale, so that no file contradicts verdicts and funnel.

    Args:
        run: a decided run. `written` is taken out of its manifest before anything is moved.

    Returns:
        What was moved: names relative to OUT, `shards` for all files of shards. Nothing if the verdicts are those that
        the products were made from.
    """
    verdicts = read_verdicts(run)
    decision = decision_digest(run, verdicts)
    products = {
        "shards": _stale_shards(run, verdicts),
        "kept_uids.npy": _stale_uids(run),
        "topics.json": _stale_topics(run, verdicts),
        **{name: _stale_text(run.folder / name, decision) for name in ("report.html", CARD, f"shards/{CARD}")},
    }
    if products["report.html"] and (numbers := run.folder / "report.json").exists():
        products["report.html"].append(numbers)
    files = [file for several in products.values() for file in several]
    if files:
        forget_written(run)
    for file in files:
        move(file, _aside(run, file))
    return [name for name, several in products.items() if several and "/" not in name]


def move(file: Path, target: Path) -> None:
    """Moves a file within OUT; the folder it is moved to may be missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)


def move_summaries(run: Run) -> None:
    """Moves sizes.json, kept_uids.npy and the cards to OUT/stale; a card of the user's own stays.

    They describe one complete set of shards. It comes before the first shard of another set replaces one of theirs.
    """
    shards = run.table_path(0).parent
    cards = [card for card in (run.folder / CARD, shards / CARD) if is_stamped(card)]
    for file in [shards / COUNTS, run.folder / "kept_uids.npy", *cards]:
        if file.exists():
            move(file, _aside(run, file))


def _aside(run: Run, file: Path) -> Path:
    return run.folder / STALE / file.relative_to(run.folder)


def is_aside(run: Run, shard: OutputShard) -> bool:
    """Whether OUT/stale has the complete files of an output shard."""
    return is_written(_aside(run, run.table_path(shard.number)), shard)


def restore(run: Run, shard: OutputShard) -> None:
    """Moves the files of an output shard back from OUT/stale (`is_aside`)."""
    table = run.table_path(shard.number)
    aside = _aside(run, table)
    for file in [*(aside.with_name(name) for name in json.loads(_metadata(aside)[SIZES])), aside]:  # the table last
        move(file, table.with_name(file.name))


def forget_written(run: Run) -> None:
    """Removes `written` from the manifest on disk; comes before any product is moved or replaced."""
    if run.manifest.pop("written", None) is not None:
        run.save()


def _stale_shards(run: Run, verdicts: list[InputVerdicts]) -> list[Path]:
    stale = []
    expected: dict[WriteOptions, list[list[OutputShard]]] = {}
    without_recaptions = [replace(part, recaptions="") for part in verdicts]
    for number, files in shard_files(run).items():
        options = _options_of(run.table_path(number))
        if options and options not in expected:
            expected[options] = [output_shards(those, options) for those in (verdicts, without_recaptions)]
        possible = [shards[number] for shards in expected.get(options, []) if number < len(shards)] if options else []
        if not any(is_written(run.table_path(number), shard) for shard in possible):
            stale += files
    counts = run.table_path(0).parent / COUNTS
    return [*stale, *([counts] if stale and counts.exists() else [])]


def _options_of(table: Path) -> WriteOptions | None:
    mark = _metadata(table).get(MARK)
    if mark is None:
        return None
    content = json.loads(mark)
    return WriteOptions(content["format"], content["shard_size"], content["shuffle"])


def _stale_uids(run: Run) -> list[Path]:
    path = run.folder / "kept_uids.npy"
    return [path] if path.exists() and not uids_are_current(run, kept_uids(run)) else []


def _stale_text(path: Path, digest: str) -> list[Path]:
    return [path] if is_stamped(path) and not is_stamped(path, digest) else []


def _stale_topics(run: Run, verdicts: list[InputVerdicts]) -> list[Path]:
    path = run.folder / "topics.json"
    stale = path.exists() and current_topics(run, verdicts) is None
    files = (path, path.with_suffix(".parquet"), run.folder / "atlas.parquet")
    return [file for file in files if file.exists()] if stale else []
