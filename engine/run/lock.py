"""The lock of a command's folder: one command at a time writes to it; commands that only read take no lock."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import LOCK, remove_unfinished
from danqing.engine.core.lock import LockHeldError, locked
from danqing.engine.core.remote_lock import locked_object
from danqing.engine.core.storage import RemotePath
from danqing.engine.core.store import WEB

P = ParamSpec("P")
T = TypeVar("T")

_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
"""Folders that the calling thread holds, because phases call each other. Other threads start with none."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Holds the lock of a folder during a `with` block, after removing unfinished files of killed processes from it.

    Args:
        folder: OUT of a command; created if it does not exist, and then removed at the end if it is still empty.

    Yields:
        Whether the lock was taken here; False if the calling function holds it already.

    Raises:
        DanqingError: another process writes to the folder, or the folder cannot be made or written.
    """
    place = folder.resolve()
    if place in _held.get():
        yield False
        return
    created = _make(folder)
    entered = False
    try:
        lock = folder / LOCK
        with locked_object(lock) if isinstance(lock, RemotePath) else locked(lock) as held:
            entered = True
            if held:
                remove_unfinished(folder)
            else:
                print(f"danqing: {folder}: no locks here; run one command at a time in this folder", file=sys.stderr)
            token = _held.set(_held.get() | {place})
            try:
                yield True
            except KeyboardInterrupt as stopped:
                stopped.args = (folder,)  # for the command's last line
                raise
            finally:
                _held.reset(token)
    except LockHeldError as problem:
        raise DanqingError(
            f"{folder}: in use by {problem.holder}; wait until it ends, stop it, or choose another folder"
        ) from None
    except OSError as problem:
        if entered:
            raise
        raise _not_writable(folder, problem) from None
    finally:
        if created:
            with suppress(OSError):  # not empty
                folder.rmdir()


def lock_output(phase: Callable[P, T]) -> Callable[P, T]:
    """Makes a phase hold the lock of its argument `run` (a `Run`) or `output` (a folder) while it runs."""
    signature = inspect.signature(phase)

    @wraps(phase)
    def run_locked(*arguments: P.args, **named: P.kwargs) -> T:
        given = signature.bind(*arguments, **named).arguments
        with given["run"].locked() if "run" in given else lock_folder(given["output"]):
            return phase(*arguments, **named)

    return run_locked


def _make(folder: Path) -> bool:
    """Creates a folder; returns whether it did not exist."""
    if isinstance(folder, RemotePath) and folder.scheme in WEB:
        raise DanqingError(f"{folder}: web servers are only read; name a local folder or one on object storage")
    if folder.is_dir():
        return False
    if folder.is_file():
        raise DanqingError(f"{folder}: a file; name a folder for the run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise _not_writable(folder, problem) from None
    return True


def _not_writable(folder: Path, problem: OSError) -> DanqingError:
    return DanqingError(f"{folder}: cannot be written: {problem.strerror}; choose another folder")
