"""How the phases report that they get on; the terminal's progress bar is one listener, silence another."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    def expect(self, rows: int, size: int) -> None:
        """A shard of `size` bytes turned out to hold `rows` rows; where no size was announced, any will do."""

    def advance(self, rows: int) -> None:
        """So many rows more are done."""


class Silent:
    def expect(self, rows: int, size: int) -> None: ...

    def advance(self, rows: int) -> None: ...
