"""Progress of a phase, as the phase reports it; a progress bar is one listener, `silent` another."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Listens to one phase."""

    def expect(self, rows: int, size: int) -> None:
        """A shard of `size` bytes was opened and holds `rows` rows; `size` is 0 if no total was announced."""

    def advance(self, rows: int) -> None:
        """`rows` more rows are finished."""

    def say(self, line: str) -> None:
        """Shows the user a line about something unusual that the phase did."""


class OpenProgress(Protocol):
    """Opens the listener of a phase, for a `with` block.

    Args:
        label: name of the phase.
        total_bytes: bytes of all shards, from which the total of rows is estimated; 0 if unknown.
        unit: what is counted.
    """

    def __call__(self, label: str, total_bytes: int, unit: str = "pairs") -> AbstractContextManager[Progress]: ...


class Silent:
    """Ignores all reports."""

    def expect(self, rows: int, size: int) -> None: ...

    def advance(self, rows: int) -> None: ...

    def say(self, line: str) -> None: ...


def silent(label: str, total_bytes: int, unit: str = "pairs") -> AbstractContextManager[Progress]:
    """An `OpenProgress` without output."""
    return nullcontext(Silent())
