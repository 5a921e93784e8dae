"""Atomic writing of files, reading of JSON files, and the cache folder."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from danqing.engine.core.errors import DanqingError

NOT_WRITABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST}
)
"""Error codes of a folder that cannot be written: permissions, a full disk, a file where the folder should be."""


@contextmanager
def commit(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file for writing that appears under its final name only when it is complete.

    The content goes to a temporary file in the same folder, which is flushed to disk and then renamed. If the `with`
    block raises, the temporary file is removed. Processes and threads may write the same path at the same time: the
    last rename wins.

    Args:
        path: the final name; missing parent folders are created.
        mode: `wb`, or `w` for UTF-8 text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A random name, because containers that share a volume can have equal process ids. `tempfile` would set mode 600.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    encoding = None if "b" in mode else "utf-8"
    try:
        # A lone surrogate, as in a path that is not UTF-8, becomes its escape in JSON.
        with temporary.open(mode, encoding=encoding, errors=None if encoding is None else "backslashreplace") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cache_path() -> Path:
    """Returns the cache folder: `DANQING_CACHE`, else `danqing` in the user's cache folder. It may not exist yet."""
    if folder := os.environ.get("DANQING_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "danqing"


@contextmanager
def writing_cache() -> Iterator[None]:
    """Runs a block that writes to the cache folder.

    Raises:
        DanqingError: the folder cannot be written or is full; names it and says what to do.
    """
    try:
        yield
    except OSError as problem:
        if problem.errno not in NOT_WRITABLE:
            raise
        raise DanqingError(
            f"{cache_path()}: the cache cannot be written; free space in it, or set DANQING_CACHE to a folder that can "
            f"be written ({problem})"
        ) from None


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
        path: the file, in UTF-8.
        remedy: what the user does if the file is damaged; ends the error's text.

    Raises:
        DanqingError: the file cannot be read, or is not a JSON object; names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise DanqingError(f"{path}: cannot be read: {problem}; {remedy}") from None
    if not isinstance(content, dict):
        raise DanqingError(f"{path}: is not a JSON object; {remedy}")
    return content


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON in UTF-8, atomically (`commit`)."""
    with commit(path, "w") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.write("\n")
