"""Locks on object storage: an object that names the holder, who writes it again as long as its process runs.

Stores of `pyarrow.fs` have no operation that creates an object only if there is none, so two commands that start within
the same `SETTLE_SECONDS` can be missed; `locked` in `engine.core.lock` has no such gap. A file is replaced in one step
in any case, and equal inputs give equal files.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import write_json
from danqing.engine.core.lock import Holder, LockHeldError
from danqing.engine.core.storage import RemotePath, forget

LEASE_SECONDS = 120.0
"""Age from which a lock is that of a process that was killed."""
RENEW_SECONDS = 30.0
"""Time after which a holder writes its lock again."""
SETTLE_SECONDS = 0.5
"""Pause between writing a lock and reading it back; of two processes that write at once, the first then gives way."""


@contextmanager
def locked_object(path: RemotePath, others: Iterable[Path] = (), wait: bool = False) -> Iterator[bool]:
    """Holds a lock on object storage during a `with` block; yields True.

    Args:
        path: the lock.
        others: locks that no process may hold at the start.
        wait: wait while another process holds the lock.

    Raises:
        LockHeldError: another process or thread holds one of the locks, and `wait` is false.
        DanqingError: the storage refuses or does not answer.
    """
    content = asdict(Holder()) | {"token": uuid.uuid4().hex}
    for lock in (*others, path):
        _check_free(lock, wait)
    while True:
        write_json(path, content)
        time.sleep(SETTLE_SECONDS)
        if _read(path).get("token") == content["token"]:
            break
        _check_free(path, wait)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(path, content, ended), daemon=True)
    renewal.start()
    try:
        yield True
    finally:
        ended.set()
        renewal.join()
        if _read(path).get("token") == content["token"]:
            path.unlink(missing_ok=True)


def _renew(path: RemotePath, content: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        with suppress(DanqingError):  # the next renewal may succeed
            write_json(path, content)


def _read(path: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError, ValueError):
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found
    return {}


def _check_free(path: Path, wait: bool = False) -> None:
    """Waits until no process that may be running holds the lock; raises LockHeldError instead if `wait` is false."""
    while True:
        forget()
        found = _read(path)
        if not found or not path.exists():
            return
        found.pop("token", None)
        holder, age = Holder(**found), time.time() - path.stat().st_mtime
        if age >= LEASE_SECONDS or (holder.host == socket.gethostname() and not _runs(holder.pid)):
            return
        if wait:
            time.sleep(SETTLE_SECONDS)
            continue
        raise LockHeldError(
            f"{holder}; it renewed {path} {max(age, 0):.0f} s ago, and the lock of a killed command ends after "
            f"{LEASE_SECONDS:.0f} s"
        )


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
