"""Parts: how processes that work on one folder divide its shards among themselves (`--part`)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, TypeVar

from danqing.engine.core.errors import DanqingError

T = TypeVar("T")


class Share(ABC):
    """The shards that one of several processes does; the others do the rest at the same time.

    Attributes:
        needs_locks: by its lock, other processes find out whether a process runs; a folder without locks is refused.
    """

    needs_locks: ClassVar[bool] = False

    @property
    @abstractmethod
    def suffix(self) -> str:
        """End of the names of the process's own files: its lock and its log."""

    @abstractmethod
    def holds(self, number: int) -> bool:
        """Whether the process can do an input shard."""

    @abstractmethod
    def block(self, items: Sequence[T]) -> Sequence[T]:
        """The output shards that the process can do."""

    def check_ray(self, ray: str) -> None:
        """Raises DanqingError if the shards are also to be divided among the workers of a Ray cluster."""
        if ray:
            raise DanqingError(
                f"--part {self} and --ray {ray}: both divide the shards among machines; give one of them. A process "
                "uses several GPUs of its machine with --devices"
            )


@dataclass(frozen=True)
class TaskPart(Share):
    """The value of `--part`: task `number` of `count` tasks, counted from 0.

    >>> part = TaskPart.parse("1/3")
    >>> part.block(range(10)), part.holds(4), str(part)
    (range(3, 6), True, '1/3')
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `I/N`.

        Raises:
            DanqingError: the text is something else, or I is not below N.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        if not found or not int(found[1]) < int(found[2]):
            raise DanqingError(f"--part {text}: write I/N with I from 0 to N - 1, for example 0/16")
        return cls(int(found[1]), int(found[2]))

    def holds(self, number: int) -> bool:
        """Whether an input shard belongs to the part: every `count`-th does, so that all parts take equally long."""
        return number % self.count == self.number

    def block(self, items: Sequence[T]) -> Sequence[T]:
        """The part's output shards: adjacent ones, so that every input shard is read by as few tasks as possible."""
        first, last = (len(items) * position // self.count for position in (self.number, self.number + 1))
        return items[first:last]

    @property
    def suffix(self) -> str:
        return f"-{self.number}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
