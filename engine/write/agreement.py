"""Makes the parts of one writing (`write --part`) have the same options; with others, shards would lack pairs.

The part that starts first notes the options in OUT/shards/writing.json. The file is removed when all shards are
written. It counts only for the verdicts that it names. The number of parts (N of `--part I/N`) may change: the writing
is complete when every shard is there, whichever part wrote it.
"""

from __future__ import annotations

from pathlib import Path

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import read_json, write_json
from danqing.engine.run.folder import Run
from danqing.engine.run.part import Share
from danqing.engine.write.output import WriteOptions

NAME = "writing.json"


def agree(run: Run, part: Share, options: WriteOptions, verdicts: str) -> None:
    """Notes the options of a part that has shards to write, for the parts that follow.

    Args:
        run: the run; the caller holds its manifest.
        part: the part that starts.
        options: its options.
        verdicts: digest of the verdicts (`verdicts_digest`).

    Raises:
        DanqingError: earlier parts, whose shards are not all written yet, have other options; names them.
    """
    path = _path(run)
    flags = {
        "--output-format": options.output_format,
        "--shard-size": options.shard_size,
        "--licence": options.licence,
    }
    remedy = f"delete {path.parent} and run all parts again"
    there = read_json(path, remedy) if path.exists() else {}
    if there.get("verdicts") != verdicts:
        write_json(path, {"verdicts": verdicts, "options": flags})
        return
    before = there["options"]
    if differing := [name for name, value in flags.items() if before[name] != value]:
        first, second = (" ".join(f"{name} {given[name]}" for name in differing) for given in (before, flags))
        raise DanqingError(
            f"{run.folder}: parts are being written with {first}, and part {part} has {second}; give all parts the "
            f"same options. To choose others, end all parts, {remedy}"
        )


def forget_agreement(run: Run) -> None:
    """Removes the note: all shards are written, or one process writes them all."""
    _path(run).unlink(missing_ok=True)


def _path(run: Run) -> Path:
    return run.table_path(0).with_name(NAME)
