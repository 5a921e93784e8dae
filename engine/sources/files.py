"""Reads the files that an input names: regular files below the input's folder, up to a largest size."""

from __future__ import annotations

import errno
import os
import stat
from functools import lru_cache
from pathlib import Path

from danqing.engine.core.escape import printable
from danqing.engine.core.storage import ADDRESS, path_of
from danqing.engine.sources.text import SampleError

FOLLOW = "--follow-links reads it"


def read_file(folder: str, name: str, limit: int, follow_links: bool = False) -> bytes:
    """Reads a file of an input.

    Args:
        folder: the input's folder.
        name: the file's path, relative to the folder.
        limit: largest size in bytes.
        follow_links: also read files outside the folder.

    Raises:
        SampleError: the file does not exist, is larger than `limit`, is not a regular file (reading a pipe may never
            end), or lies outside the folder, by its name or through a link.
    """
    if ADDRESS.match(folder):
        return _read_remote(folder, name, limit)
    path = name if name.startswith("/") else f"{folder}/{name}"
    try:
        if not (follow_links or is_inside(folder, path)):
            raise SampleError(f"{printable(path)}: outside the input's folder; {FOLLOW}")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as problem:
        is_socket = getattr(problem, "errno", None) == errno.ENXIO
        reason = "not a file" if is_socket else getattr(problem, "strerror", None) or printable(problem)
        raise SampleError(f"{printable(path)}: {reason}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SampleError(f"{printable(path)}: not a file")
        if status.st_size > limit:
            raise SampleError(f"{printable(path)}: {status.st_size:,} bytes; at most {limit:,} are read")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    except OSError as problem:
        raise SampleError(f"{printable(path)}: {problem.strerror}") from None
    finally:
        os.close(descriptor)


def _read_remote(folder: str, name: str, limit: int) -> bytes:
    path = path_of(f"{folder}/{name}")
    if name.startswith("/") or ".." in path.parts:
        raise SampleError(f"{printable(name)}: outside the input's folder {printable(folder)}")
    if not path.is_file():
        raise SampleError(f"{printable(path)}: {os.strerror(errno.ENOENT)}")
    if (size := path.stat().st_size) > limit:
        raise SampleError(f"{printable(path)}: {size:,} bytes; at most {limit:,} are read")
    return path.read_bytes()


def is_inside(folder: str, path: str) -> bool:
    """Whether a path leads into the folder when all links are followed."""
    parent, _, base = path.rpartition("/")
    if base in ("", ".", "..") or Path(path).is_symlink():
        real = os.path.realpath(path)
    else:
        real = f"{_real(parent or '.')}/{base}"
    root = _real(folder or ".")
    return real == root or real.startswith(root.rstrip("/") + "/")


@lru_cache(1024)  # a table names many files of few folders
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def clear_cache() -> None:
    """Empties the cache of link targets, which can change."""
    _real.cache_clear()
