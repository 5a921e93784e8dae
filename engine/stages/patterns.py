"""Matches of a recipe's regular expressions: one stage for each criterion that counts them.

RE2 counts on the host, through Arrow; its time is linear in the text for every pattern. On a GPU, libcudf counts the
patterns that it gives the meaning that RE2 gives them (`regexes.for_libcudf`), and RE2 counts the others.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danqing.engine.core import libcudf
from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.core.logs import log
from danqing.engine.core.text_column import TextColumn
from danqing.engine.recipe.criteria import Pattern
from danqing.engine.recipe.reading import Recipe
from danqing.engine.stages import CATALOGUE
from danqing.engine.stages.base import Context, Stage
from danqing.engine.stages.regexes import DiffersError, for_libcudf
from danqing.engine.stages.vlm.judgment import stage_of

MIN_ROWS_PER_TASK = 256
_LOOKS_BACK = re.compile(r"\^|\\[AbB]")
"""Assertions about what is before a match. Arrow's counting hides it: it searches for each match in a text that begins
where the last one ended."""


def stages_for(recipe: Recipe) -> list[type[Stage]]:
    """Lists the registered stages, and those that count the recipe's patterns and ask its questions."""
    return [*CATALOGUE, *map(_stage, recipe.patterns), *map(stage_of, recipe.judgments)]


def _stage(criterion: Pattern) -> type[Stage]:
    return type(
        "CountedPattern",
        (Matches,),
        {
            "name": f"pattern {criterion.name}",
            "needs": (criterion.source,),
            "produces": {criterion.name: criterion.output},
            "criterion": criterion,
        },
    )


class Matches(Stage):
    """The number of matches of a criterion's patterns; 0 for a missing text."""

    criterion: ClassVar[Pattern]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.counters = [open_counter(context.device, pattern) for pattern in self.criterion.patterns]

    def __call__(self, batch: Batch) -> None:
        counts = [counter.count(batch[self.criterion.source]) for counter in self.counters]
        batch[self.criterion.name] = np.sum(counts, axis=0, dtype=np.int32)


class HostCounter:
    """Counts the matches of a pattern by RE2."""

    def __init__(self, device: Device, pattern: str) -> None:
        self.device, self.pattern = device, pattern

    def count(self, text: TextColumn) -> np.ndarray:
        """Returns the number of matches in each text: int32 (rows,)."""
        rows = text.arrow()
        tasks = max(1, min(self.device.threads, len(rows) // MIN_ROWS_PER_TASK))
        edges = np.linspace(0, len(rows), tasks + 1).astype(int).tolist()
        parts = [rows[start:stop] for start, stop in pairwise(edges)]
        counts = self.device.map(self._count, parts) if tasks > 1 else [self._count(rows)]
        return np.concatenate(counts)

    def _count(self, rows: pa.Array) -> np.ndarray:
        if not _LOOKS_BACK.search(self.pattern):
            found = pc.count_substring_regex(rows, pattern=self.pattern)
        else:  # the text grows by one byte for every match
            longer = pc.replace_substring_regex(rows, pattern=self.pattern, replacement=r"\0.")
            found = pc.subtract(pc.binary_length(longer), pc.binary_length(rows))
        counts: np.ndarray = found.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int32)
        return counts


class DeviceCounter:
    """Counts the matches of a pattern by libcudf.

    Args:
        device: a GPU.
        pattern: as `regexes.for_libcudf` writes it.
    """

    def __init__(self, device: Device, pattern: str) -> None:
        self.device, self.program = device, libcudf.compile_regex(pattern)

    def count(self, text: TextColumn) -> np.ndarray:
        """Returns the number of matches in each text: int32 (rows,), on the host."""
        return self.device.down(libcudf.count_matches(text.strings(self.device), self.program, self.device))


def open_counter(device: Device, pattern: str) -> HostCounter | DeviceCounter:
    """Makes the counter of a pattern for a device; logs which patterns of a GPU the host counts, and why.

    >>> from danqing.engine.core.device import open_device
    >>> with open_device("cpu") as device:
    ...     open_counter(device, "QQ ?[0-9]+").count(TextColumn.of(["QQ12, QQ 34", None])).tolist()
    [2, 0]
    """
    if libcudf.serves(device):
        try:
            return DeviceCounter(device, for_libcudf(pattern))
        except DiffersError as reason:
            log.info("pattern '%s' is counted on the host by RE2: libcudf has no equal of %s", pattern, reason)
    return HostCounter(device, pattern)
