"""Copies of remote files in the cache, by address, size and time. They are removed when space is short."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from danqing.engine.core.buckets import Entry
from danqing.engine.core.cache import cache_path, folder_from
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.lock import locked

COPIES = "DANQING_REMOTE_CACHE"
"""Variable of the environment with the folder of the copies; `--cache` sets it."""
KEPT_FREE = 0.1
"""Share of the cache's disk that stays free; the least recently used copies are removed for it."""
IN_USE_SECONDS = 60.0
"""Age under which a copy is not removed, since a process may be about to open it."""
ABANDONED_SECONDS = 24 * 3600.0
"""Age at which a temporary file in a folder without a lock belongs to no running process."""
BOOT = Path("/proc/sys/kernel/random/boot_id")


def copies_folder() -> Path:
    """The folder of the copies of remote files; it exists."""
    folder = folder_from(COPIES) or cache_path() / "remote"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DanqingError(f"{folder}: cannot be written ({problem.strerror}); choose another --cache") from None
    return folder


def _place(address: str, entry: Entry) -> Path:
    """Returns the path of an object's copy, which depends on the object's size and time.

    It also depends on the machine's last start: copies are not flushed to disk, so a crash can damage them.
    """
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    identity = f"{address} {entry.size} {entry.seconds} {boot}".encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(identity).hexdigest()[:32]
    return copies_folder() / digest[:2] / digest[2:] / entry.name


def copy_of(address: str, entry: Entry, download: Callable[[IO[bytes]], None]) -> Path:
    """Returns the copy of an object; downloads it if there is none. Threads and processes wait for each other.

    Args:
        address: of the object.
        entry: its size and time.
        download: writes its content to a file.

    Raises:
        FileNotFoundError: raised by `download`.
        DanqingError: the cache cannot be written.
    """
    copy = _place(address, entry)
    if _touch(copy):
        return copy
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with locked(copy.with_name(f".{copy.name}.lock"), wait=lambda holder: None):
            if not _touch(copy):
                _make_room(entry.size or 0)
                with scratch_file(copy.name) as temporary:
                    with temporary.open("wb") as file:
                        download(file)
                    temporary.replace(copy)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise DanqingError(f"{copy}: cannot be written ({problem.strerror}); choose another --cache") from None
    return copy


def has_copy(address: str, entry: Entry) -> bool:
    """Whether there is a copy of an object."""
    return _touch(_place(address, entry))


def keep(file: Path, address: str, entry: Entry) -> None:
    """Moves a local file into the cache, as the copy of the object that has its content."""
    copy = _place(address, entry)
    copy.parent.mkdir(parents=True, exist_ok=True)
    file.replace(copy)


def temporary_name(name: str) -> str:
    """Returns a new name for a file that is written before it gets its own.

    It is random, because containers that share a volume can have equal process ids. `tempfile` would set mode 600.
    """
    return f".{name}.{uuid.uuid4().hex}.part"


@contextmanager
def scratch_file(name: str) -> Iterator[Path]:
    """Yields a new name in the cache; removes the file at the end of a `with` block if it is still there."""
    temporary = copies_folder() / temporary_name(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _touch(copy: Path) -> bool:
    """Marks a copy as used now; returns whether there is one."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def _make_room(size: int) -> None:
    """Removes copies, the least recently used first, until a file of `size` bytes leaves `KEPT_FREE` of the disk."""
    folder = copies_folder()
    usage = shutil.disk_usage(folder)
    needed = size + int(KEPT_FREE * usage.total) - usage.free
    if needed <= 0:
        return
    found = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                found.append((path.stat().st_mtime, path))
    for used, path in sorted(found):
        if needed <= 0:
            return
        if time.time() - used > (ABANDONED_SECONDS if path.name.startswith(".") else IN_USE_SECONDS):
            with suppress(FileNotFoundError):
                needed -= path.stat().st_size
                path.unlink()
