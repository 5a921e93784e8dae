"""Locks between processes. The kernel releases a lock when its process ends, also if it is killed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
"""Error codes of file systems without locks, for example NFS without a lock daemon."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as its file names it."""

    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    since: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))
    command: str = field(default_factory=lambda: shlex.join(sys.argv))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} ({self.command})"


class LockHeldError(Exception):
    """Another process holds the lock.

    Attributes:
        holder: description of that process.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(f"held by {holder}")
        self.holder = holder


@contextmanager
def locked(path: Path, wait: Callable[[str], None] | None = None, shared: bool = False) -> Iterator[bool]:
    """Holds a lock during a `with` block. Two threads of a process exclude each other, too.

    Args:
        path: the lock's file, in a folder that exists. It names the holder, and is removed at the end.
        wait: called once with the holder's name if the lock is held; the call then waits. None: raise an error.
        shared: hold it together with others that share it. The file then stays at the end, since they may hold it.

    Yields:
        False if the file system has no locks, so that nothing is held.

    Raises:
        LockHeldError: another process or thread holds the lock, and `wait` is None.
        OSError: the file cannot be written.
    """
    while True:
        with path.open("a+", encoding="utf-8") as file:
            held = _acquire(file, wait, shared)
            if held and not _is_file(path, file):
                continue  # the holder that this process waited for has removed the file
            try:
                file.truncate(0)
                json.dump(asdict(Holder()), file)
                file.flush()
                yield held
            finally:
                if not shared:
                    path.unlink(missing_ok=True)
            return


def holder_of(path: Path) -> str:
    """Describes the process that holds a lock; empty if none does.

    Holds a free lock for an instant, in which no other process can take it.

    Args:
        path: the lock's file, which may be missing.
    """
    try:
        with path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _holder_of(file)
    except FileNotFoundError:
        pass
    return ""


def _acquire(file: IO[str], wait: Callable[[str], None] | None, shared: bool) -> bool:
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        if wait is None:
            raise LockHeldError(_holder_of(file)) from None
        wait(_holder_of(file))
        fcntl.flock(file, kind)
    except OSError as problem:
        if problem.errno not in NO_LOCKS:
            raise
        return False
    return True


def _holder_of(file: IO[str]) -> str:
    file.seek(0)
    with suppress(ValueError, TypeError):
        return str(Holder(**json.loads(file.read())))
    return "another process"  # which has not written its name yet


def _is_file(path: Path, file: IO[str]) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False
