"""Claims: processes without numbers divide the shards of a run among themselves (`--part any`).

To claim a shard, a process writes a file, OUT/claims/scores/00012.PROCESS, and then lists the claims of this shard. If
another running process claims it, the process removes its file again. Of two processes that claim a shard at once, at
least the second to list finds the claim of the other. No step needs to be atomic, so claims work on object storage,
where a list has everything that was written before.

A process runs as long as it holds the lock of its name in OUT, so claims themselves are not renewed. It removes them
before it releases the lock: a claim without a lock is that of a killed process, and others can claim the shard. Equal
input gives equal bytes on equal devices, so a shard that is done twice does no harm.
"""

from __future__ import annotations

import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import LOCK, write_json
from danqing.engine.core.lock import holder_of
from danqing.engine.core.remote_lock import object_is_held
from danqing.engine.core.storage import RemotePath, forget
from danqing.engine.run.lock import CLAIMS
from danqing.engine.run.part import Share, TaskPart
from danqing.engine.run.work import MAX_DEATHS

ANY = "any"
"""The value of `--part` for a process without a number."""
POLL_SECONDS = 1.0
"""Mean time between two searches for a free shard."""


class Numbered(Protocol):
    """An input or output shard."""

    @property
    def number(self) -> int:
        """Its number in the run."""


T = TypeVar("T", bound=Numbered)
S = TypeVar("S")


def _process_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True)
class AnyPart(Share):
    """The value `any` of `--part`: the shards that the process claims.

    Attributes:
        process: name of the process in its claims, its lock and its log.
    """

    process: str = field(default_factory=_process_name)
    needs_locks: ClassVar[bool] = True

    @property
    def suffix(self) -> str:
        return f"-{self.process}"

    def holds(self, number: int) -> bool:
        return True

    def block(self, items: Sequence[S]) -> Sequence[S]:
        return items

    def __str__(self) -> str:
        return ANY


def read_share(text: str) -> Share | None:
    """Reads the value of `--part`: `I/N`, `any`, or empty for the whole run.

    Raises:
        DanqingError: the text is something else.
    """
    if not text:
        return None
    if text == ANY:
        return AnyPart()
    try:
        return TaskPart.parse(text)
    except DanqingError as problem:
        raise DanqingError(f"{problem}, or {ANY}") from None


def forget_claims(output: Path) -> None:
    """Removes the claims in OUT if all are those of killed processes, so that no shard stays given up.

    Args:
        output: OUT; the caller holds its manifest (`lock_manifest`).
    """
    forget()
    claims = list(output.glob(f"{CLAIMS}/*/[0-9]*"))
    if not any(_is_running(output, claim) for claim in claims):
        for claim in claims:
            claim.unlink(missing_ok=True)


def _is_running(output: Path, claim: Path) -> bool:
    """Whether the process that made a claim is running: it holds the lock of its name."""
    process = claim.name.partition(".")[2]
    lock = output / f"{LOCK}-{process}"
    return object_is_held(lock) if isinstance(lock, RemotePath) else bool(holder_of(lock))


@dataclass(frozen=True)
class Claims(Generic[T]):
    """The claims of one process to the shards of a phase.

    Attributes:
        output: OUT; the process holds its lock.
        kind: name of the folder that the phase writes to, also of the folder of its claims.
        part: names the process.
        unfinished: lists the shards that are not done.
        is_done: whether a shard is done.
        tell: shows a line.
    """

    output: Path
    kind: str
    part: AnyPart
    unfinished: Callable[[], Sequence[T]]
    is_done: Callable[[T], bool]
    tell: Callable[[str], None]

    def rounds(self) -> Generator[Iterator[T], None, None]:
        """Yields iterators over shards that the process has claimed, until all shards are done.

        An iterator ends when no shard is free. The caller must finish the shards that it has taken before it takes the
        next iterator, which is there when a shard is free again: the process that had claimed it has ended without it.

        Raises:
            DanqingError: only shards that `MAX_DEATHS` killed processes had claimed are not done; names them.
        """
        told = False
        try:
            while waiting := self._unfinished():
                given_up: set[int] = set()
                claimed = self._claimed(waiting, given_up)
                first = next(claimed, None)
                if first is not None:
                    yield chain([first], claimed)
                    self._release()
                elif given_up.issuperset(shard.number for shard in waiting):
                    names = ", ".join(f"{number:05d}" for number in sorted(given_up))
                    raise DanqingError(
                        f"{self.output}: {MAX_DEATHS} processes were killed that had claimed these shards: {names}; "
                        "run the command again to try them once more, with a lower --memory-limit if memory was short"
                    )
                else:
                    if not told:
                        self.tell(f"waits for {len(waiting)} shards that other processes have claimed")
                        told = True
                    time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))
        finally:  # also if the caller fails or is interrupted, and closes the iterator
            self._release()

    def _claimed(self, waiting: Sequence[T], given_up: set[int]) -> Iterator[T]:
        """Yields shards that the process has claimed, until none of them is free.

        Starts at a random shard, so that processes meet rarely, and goes on with the shards that follow it, which may
        be copied from the same input.

        Args:
            waiting: the shards that were not done when they were listed.
            given_up: receives the numbers of shards that `MAX_DEATHS` killed processes had claimed.
        """
        own: list[T] = []
        while waiting:
            start = random.randrange(len(waiting))
            for shard in [*waiting[start:], *waiting[:start]]:
                for done in filter(self.is_done, own.copy()):
                    own.remove(done)
                    self._path(done).unlink(missing_ok=True)
                if shard in own or not self._claim(shard, given_up):
                    continue
                if self.is_done(shard):  # since the list was made
                    self._path(shard).unlink(missing_ok=True)
                    waiting = self._unfinished()
                    break
                own.append(shard)
                yield shard
            else:
                return

    def _claim(self, shard: T, given_up: set[int]) -> bool:
        """Claims a shard if it is free; returns whether it is claimed."""
        if not self._is_free(shard, given_up):  # a process that waits for others writes nothing
            return False
        own = self._path(shard)
        try:
            write_json(own, {})
        except (FileNotFoundError, FileExistsError):  # a process that ends has just removed the empty folder
            return False
        if self._is_free(shard, given_up):
            return True
        own.unlink(missing_ok=True)
        return False

    def _is_free(self, shard: T, given_up: set[int]) -> bool:
        """Whether no other running process claims a shard, and fewer than `MAX_DEATHS` killed ones do."""
        forget()
        own = self._path(shard)
        others = [claim for claim in own.parent.glob(f"{shard.number:05d}.*") if claim != own]
        if any(_is_running(self.output, claim) for claim in others):
            return False
        if sum(claim.exists() for claim in others) < MAX_DEATHS:  # one that is gone was removed by its process
            return True
        given_up.add(shard.number)
        return False

    def _unfinished(self) -> Sequence[T]:
        forget()
        return self.unfinished()

    def _path(self, shard: T) -> Path:
        return self.output / CLAIMS / self.kind / f"{shard.number:05d}.{self.part.process}"

    def _release(self) -> None:
        """Removes all claims of the process, and the folder of the claims if it is empty."""
        folder = self.output / CLAIMS / self.kind
        for path in folder.glob(f"*.{self.part.process}"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # claims of other processes, or none
            folder.rmdir()
            folder.parent.rmdir()
