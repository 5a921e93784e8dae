"""Atomic writing of files, removal of unfinished ones, JSON files, and writing to the cache folder."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from danqing.engine.core.cache import cache_path
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.local_copies import ABANDONED_SECONDS, temporary_name
from danqing.engine.core.lock import locked
from danqing.engine.core.logs import say
from danqing.engine.core.storage import RemotePath, folder_for_temporary_files, upload

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error codes of a full disk, a used up quota and a file size limit."""
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
NOT_WRITABLE = FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
"""Error codes of a folder that cannot be written: permissions, a full disk, a file where the folder should be."""
LOCK = ".lock"
"""Name of the file in a folder that `engine.core.lock` locks, and start of the names of its other locks."""
MAKING = ".making-"
"""Start of the names of folders that are renamed when they are complete."""
_PART = re.compile(r"\..+\.[0-9a-f]{32}\.part")


@contextmanager
def naming_full_disk(place: Path) -> Iterator[None]:
    """Adds the name of a file or folder to the `OSError` of a full disk, which has none when a write fails.

    NumPy's has no number either: "7680 requested and 1984 written".
    """
    try:
        yield
    except OSError as problem:
        number = errno.ENOSPC if problem.errno is None and "requested and" in str(problem) else problem.errno
        if problem.filename is None and number in FULL:
            raise OSError(number, os.strerror(number), str(place)) from None
        raise


@contextmanager
def commit(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file for writing that appears under its final name only when it is complete.

    The content goes to a temporary file in the same folder, which is flushed to disk and then renamed; for a remote
    path to one in the cache, which is uploaded. If the `with` block raises, the temporary file is removed. Processes
    and threads may write the same path at the same time: the last rename or upload wins.

    Args:
        path: the final name; missing parent folders are created.
        mode: `wb`, or `w` for UTF-8 text.

    Raises:
        OSError: as raised by the `with` block; names `path` if the disk is full.
        DanqingError: the storage of a remote path refuses or does not answer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder_for_temporary_files(path.parent) / temporary_name(path.name)
    encoding = None if "b" in mode else "utf-8"
    try:
        # A lone surrogate, as in a path that is not UTF-8, becomes its escape in JSON.
        with temporary.open(mode, encoding=encoding, errors=None if encoding is None else "backslashreplace") as file:
            yield file
            file.flush()
            if not isinstance(path, RemotePath):
                os.fsync(file.fileno())
        if isinstance(path, RemotePath):
            upload(temporary, path)
            return
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        with naming_full_disk(path):
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_error(problem: OSError) -> str:
    """Returns the message for a file that cannot be read or written: its name, the reason, and what to do if known.

    >>> file_error(OSError(errno.ENOSPC, "No space left on device", "out/scores/00000.parquet"))
    'out/scores/00000.parquet: No space left on device; free space there, then run the same command again'
    """
    advice = "; free space there, then run the same command again" if problem.errno in NO_SPACE else ""
    return f"{problem.filename}: {problem.strerror}{advice}"


def copy_file(source: Path, target: Path) -> None:
    """Copies a file, atomically (`commit`); within a bucket the storage copies it."""
    if isinstance(source, RemotePath) and isinstance(target, RemotePath) and source.parts[:2] == target.parts[:2]:
        source.copy_to(target)
        return
    with source.open("rb") as file, commit(target) as copy:
        shutil.copyfileobj(file, copy)


def is_temporary(path: Path) -> bool:
    """Whether a name is that of a lock, or of what a killed process of the engine has left unfinished."""
    return path.name.startswith((LOCK, MAKING)) or _PART.fullmatch(path.name) is not None


def is_unused(folder: Path) -> bool:
    """Whether a folder does not exist, or holds nothing but temporary files."""
    return not folder.exists() or all(map(is_temporary, folder.iterdir()))


def remove_unfinished(folder: Path, older_than: float = 0.0) -> None:
    """Removes files that killed processes have left unfinished in a folder and in the folders directly in it.

    Args:
        folder: the caller holds its lock, so that no other process writes there; or see `older_than`.
        older_than: age in seconds from which files are removed.
    """
    if isinstance(folder, RemotePath):  # its unfinished files are in the cache
        return
    for pattern in (".*.part", "*/.*.part"):
        for path in folder.glob(pattern):
            with suppress(OSError):  # another process removes it, or it may not be removed
                if is_temporary(path) and _age(path) >= older_than:
                    path.unlink()


def remove_abandoned(folder: Path) -> None:
    """Removes files and folders that are older than `ABANDONED_SECONDS` and unfinished, in a folder of the cache."""
    remove_unfinished(folder, ABANDONED_SECONDS)
    for path in folder.glob(f"{MAKING}*"):
        with suppress(OSError):
            if _age(path) >= ABANDONED_SECONDS:
                shutil.rmtree(path)


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


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


_builders: dict[Path, threading.Lock] = {}
"""Locks of the folders that threads of this process build, so that no thread says that it waits for its own process."""


@contextmanager
def building(folder: Path, what: str) -> Iterator[bool]:
    """Holds the lock of what one thread of one process builds in the cache while others wait, during a `with` block.

    The block must first check whether another one has built the folder. Files that killed processes left beside it
    are removed.

    Args:
        folder: appears when it is built.
        what: names it, for the line that a waiting process prints.

    Yields:
        Whether the block waited for another thread or process.

    Raises:
        DanqingError: the cache folder cannot be written.
    """
    builder = _builders.setdefault(folder, threading.Lock())
    waited = not builder.acquire(blocking=False)

    def wait(holder: str) -> None:
        nonlocal waited
        waited = True
        say(f"waits for {what}, which {holder} is making")

    if waited:
        builder.acquire()
    try:
        with writing_cache():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.parent / f".{folder.name}{LOCK}", wait):
                remove_abandoned(folder.parent)
                yield waited
    finally:
        builder.release()


def exchange(made: Path, folder: Path) -> None:
    """Swaps the names of two folders in one step, so that every process finds one of them under each name.

    Raises:
        OSError: the kernel or the file system cannot do it.
    """
    at_cwd, rename_exchange = -100, 2  # of renameat2(2)
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if rename(at_cwd, os.fsencode(made), at_cwd, os.fsencode(folder), rename_exchange):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))


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
