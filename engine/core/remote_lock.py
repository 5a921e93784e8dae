"""Locks on object storage: an object that names its holder and that the holder renews as long as it runs.

`pyarrow.fs` cannot create an object only if there is none, so two processes that take the same lock within
`SETTLE_SECONDS` can both get it; `locked` in `engine.core.lock` has no such gap. Each file is still replaced in one
step, and equal inputs give equal files.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.local_copies import scratch_file
from danqing.engine.core.lock import Holder, LockHeldError
from danqing.engine.core.storage import RemotePath, forget, upload_checks

LEASE_SECONDS = 120.0
"""Age at which a lock no longer counts: its holder was killed."""
RENEW_SECONDS = 30.0
"""Time between two renewals of a lock by its holder."""
SETTLE_SECONDS = 0.5
"""Pause between writing a lock and reading it back. Of two processes that write at once, the last one gets it."""


@contextmanager
def locked_object(
    path: RemotePath, wait: Callable[[str], None] | None = None, others: Callable[[], Iterable[Path]] = tuple
) -> Iterator[None]:
    """Holds a lock on object storage during a `with` block.

    Args:
        path: the lock.
        wait: called with the holder's name as long as another process holds the lock; None: raise an error.
        others: lists locks that no process may hold at the start.

    Raises:
        LockHeldError: another process or thread holds the lock, and `wait` is None; or it holds one of the others.
        DanqingError: the storage refuses or does not answer.
    """
    lease = _Lease(path)
    _check_all_free(others, path)
    while True:
        _check_free(path, wait)
        lease.write()
        time.sleep(SETTLE_SECONDS)
        if lease.is_own():
            break
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lease, ended), daemon=True)
    renewal.start()
    upload_checks.append(lease.check)
    try:
        _check_all_free(others, path)  # of two commands that start at once, at least one finds the other's lock
        yield
    finally:
        upload_checks.remove(lease.check)
        ended.set()
        renewal.join()
        with suppress(DanqingError):  # what the block raises says more, and the lock ends after `LEASE_SECONDS`
            if lease.is_own():
                path.unlink(missing_ok=True)


class _Lease:
    """A lock that this process holds. A pickled copy in a worker process renews the same lock.

    Args:
        path: the lock.
    """

    def __init__(self, path: RemotePath) -> None:
        self._path, self._written = path, 0.0
        self._content = asdict(Holder()) | {"token": uuid.uuid4().hex, "machine": _machine()}

    def __getstate__(self) -> dict[str, Any]:
        """Makes a copy renew the lock before its first upload, since the clocks of two hosts can differ."""
        return {**self.__dict__, "_written": 0.0}

    def write(self) -> None:
        """Writes the lock, again if it is there."""
        before = time.time()
        _write(self._path, self._content)
        self._written = before

    def is_own(self) -> bool:
        """Whether the lock is still this one."""
        return bool(_read(self._path).get("token") == self._content["token"])

    def renew(self) -> None:
        """Writes the lock again.

        Raises:
            DanqingError: another process has taken it.
        """
        if not self.is_own():
            raise DanqingError(
                f"{self._path.parent}: this command was suspended or had no network for {LEASE_SECONDS:.0f} s, and "
                "another command has taken the folder; wait until it ends, then run this one again: it goes on where "
                "it stopped"
            )
        self.write()

    def check(self, path: RemotePath) -> None:
        """Renews the lock before an object of its folder is written, if it is so old that another process may soon
        take it: the thread that renews it may have been suspended with this one."""
        if time.time() - self._written > LEASE_SECONDS / 2 and path.is_relative_to(self._path.parent):
            self.renew()


def _renew(lease: _Lease, ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        with suppress(DanqingError):  # the next renewal may succeed; `check` reports a lost lock
            lease.renew()


def _write(path: RemotePath, content: dict[str, Any]) -> None:
    """Writes a lock, without the check of `storage.upload`: another process can write it at the same time."""
    with scratch_file(path.name) as file:
        file.write_text(json.dumps(content), encoding="utf-8")
        path.bucket.upload(file, path.key)


def _read(path: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError, ValueError):
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found
    return {}


def _check_all_free(locks: Callable[[], Iterable[Path]], own: RemotePath) -> None:
    for lock in locks():
        if lock != own:
            _check_free(lock)


def object_is_held(path: Path) -> bool:
    """Whether a running process holds the lock; that of a killed one on another host counts for `LEASE_SECONDS`."""
    return _running_holder(path) is not None


def _check_free(path: Path, wait: Callable[[str], None] | None = None) -> None:
    """Returns when no running process holds the lock; raises LockHeldError if one does and `wait` is None."""
    while found := _running_holder(path):
        holder, age = found
        if wait is None:
            raise LockHeldError(
                f"{holder}; it renewed {path} {max(age, 0):.0f} s ago, and the lock of a killed command ends after "
                f"{LEASE_SECONDS:.0f} s"
            )
        wait(str(holder))
        time.sleep(SETTLE_SECONDS)


def _running_holder(path: Path) -> tuple[Holder, float] | None:
    """Returns the process that holds the lock, and the age of the lock in seconds; None if none does."""
    forget()
    found = _read(path)
    if not found or not path.exists():
        return None
    found.pop("token", None)
    is_here = found.pop("machine", "") == _machine()
    holder, age = Holder(**found), _storage_time(path) - path.stat().st_mtime
    if age >= LEASE_SECONDS or (is_here and not _runs(holder.pid)):
        return None
    return holder, age


def _machine() -> str:
    """Names the boot of this machine and the space of its process numbers, since containers can share a host's name."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _storage_time(lock: Path) -> float:
    """Returns the time of the storage's clock, from an object that is written for it. Hosts' clocks can differ."""
    probe = lock.with_name(f".{uuid.uuid4().hex}.part")
    assert isinstance(probe, RemotePath)
    _write(probe, {})
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
