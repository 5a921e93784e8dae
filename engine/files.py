"""Atomic writing of files, and the cache folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def commit(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that appears under its final name only when complete: written aside, flushed to disk, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    encoding = None if "b" in mode else "utf-8"
    try:
        with aside.open(mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cache_path() -> Path:
    """The cache folder: `DANQING_CACHE`, else `danqing` in the user's cache folder. It need not exist."""
    if folder := os.environ.get("DANQING_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "danqing"


def write_json(path: Path, content: Any) -> None:
    with commit(path, "w") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.write("\n")
