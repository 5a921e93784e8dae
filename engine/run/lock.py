"""The lock of a command's folder: one command at a time writes to it; commands that only read take no lock.

Processes with `--part` share the lock of their folder: they run at the same time, but at no time with another command.
Each writes files of its own; they change what belongs to the whole run one after the other (`lock_manifest`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from danqing.engine.core.buckets import WEB
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import LOCK, remove_unfinished
from danqing.engine.core.lock import LockHeldError, holder_of, locked
from danqing.engine.core.logs import say
from danqing.engine.core.remote_lock import locked_object
from danqing.engine.core.storage import RemotePath, remove_tree
from danqing.engine.run.part import Share

P = ParamSpec("P")
T = TypeVar("T")

CLAIMS = "claims"
"""Folder of claims in a run's folder (`engine.run.claims`)."""
MANIFEST = "-run"
"""End of the name of the lock of run.json."""

_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
"""Folders whose lock the calling thread holds, since phases call each other. Other threads start with none."""


@contextmanager
def lock_folder(folder: Path, part: Share | None = None) -> Iterator[bool]:
    """Holds the lock of a folder during a `with` block, after removing unfinished files of killed processes from it.

    Args:
        folder: OUT of a command; created if it does not exist, and then removed at the end if it is still empty.
        part: shares the lock with the processes of other parts. No files are removed then: they may be writing them.

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
        with _locked(folder, part) as held:
            entered = True
            if held and not part:
                remove_unfinished(folder)
                _forget_killed(folder)
            if not held and part and part.needs_locks:
                raise DanqingError(f"{folder}: no locks here, which --part {part} needs; give each process --part I/N")
            if not held:
                what = "one command at a time" if not part else "each part once, and other commands after all parts,"
                say(f"{folder}: no locks here; run {what} in this folder")
            token = _held.set(_held.get() | {place})
            try:
                yield True
            except KeyboardInterrupt as stopped:
                stopped.args = (folder,)  # for the command's last line
                raise
            finally:
                _held.reset(token)
    except LockHeldError as problem:
        # The lock that several processes share names the last one to take it, which may have ended.
        holder = (not part and _running_part(folder)) or problem.holder
        raise DanqingError(
            f"{folder}: in use by {holder}; wait until it ends, stop it, or choose another folder"
        ) from None
    except OSError as problem:
        if entered:
            raise
        raise _not_writable(folder, problem) from None
    finally:
        if created:
            with suppress(OSError):  # not empty
                folder.rmdir()


@contextmanager
def _locked(folder: Path, part: Share | None) -> Iterator[bool]:
    own, whole = folder / f"{LOCK}{part.suffix if part else ''}", folder / LOCK
    if isinstance(own, RemotePath):
        with locked_object(own, others=lambda: [whole] if part else folder.glob(f"{LOCK}*")):
            yield True
    elif part is None:
        with locked(whole) as held:
            yield held
    else:
        # A process that makes claims waits: another one can hold its lock for an instant (`holder_of`).
        with locked(whole, shared=True), locked(own, _wait if part.needs_locks else None) as held:
            yield held


def _running_part(folder: Path) -> str:
    """Describes a process that has a part of the folder's work; empty if there is none, or on object storage."""
    locks = () if isinstance(folder, RemotePath) else folder.glob(f"{LOCK}-*")
    return next(filter(None, map(holder_of, locks)), "")


def _forget_killed(folder: Path) -> None:
    """Removes locks and claims of killed processes; the caller holds the lock of the whole folder."""
    for lock in folder.glob(f"{LOCK}-*"):
        lock.unlink(missing_ok=True)
    remove_tree(folder / CLAIMS)


@contextmanager
def lock_manifest(folder: Path) -> Iterator[None]:
    """Holds the lock of a run's manifest during a `with` block; waits while another task of the run holds it."""
    lock = folder / f"{LOCK}{MANIFEST}"
    with locked_object(lock, _wait) if isinstance(lock, RemotePath) else locked(lock, _wait):
        yield


def _wait(holder: str) -> None:
    """Waits without a message."""


def lock_output(phase: Callable[P, T]) -> Callable[P, T]:
    """Makes a phase hold the lock of its argument `run` (a `Run`) or `output` (a folder) while it runs.

    The argument `part`, or the attribute of that name of the argument `settings`, says for which part.
    """
    signature = inspect.signature(phase)

    @wraps(phase)
    def run_locked(*arguments: P.args, **named: P.kwargs) -> T:
        given = signature.bind(*arguments, **named).arguments
        part = given.get("part") or getattr(given.get("settings"), "part", None)
        with given["run"].locked(part) if "run" in given else lock_folder(given["output"], part):
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
