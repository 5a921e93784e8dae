"""Results of the steps: named figures, as JSON and as rows of a table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich import box
from rich.markup import escape
from rich.table import Table

from danqing.engine.core.device import Device
from danqing.engine.core.files import write_json


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Attributes:
        name: what was measured, as the table shows it.
        value: the figure; a string says why there is none.
        unit: of the value, `1/s` for instance.
        bar: the figure to compare with, in words: a peer's published figure or a goal of ours.
    """

    name: str
    value: float | str
    unit: str = ""
    bar: str = ""

    @property
    def text(self) -> str:
        if isinstance(self.value, str):
            return self.value
        digits = 0 if abs(self.value) >= 100 or self.value == int(self.value) else 3 if abs(self.value) >= 0.1 else 6
        return f"{self.value:,.{digits}f}"


@dataclass(frozen=True)
class Result:
    """Result of a step: its figures, and in `error` why it ended early."""

    step: str
    seconds: float
    figures: tuple[Figure, ...] = ()
    error: str = ""

    def write(self, folder: Path) -> None:
        write_json(folder / f"{self.step}.json", asdict(self))

    @classmethod
    def read(cls, folder: Path, step: str) -> Result:
        """What the step has written so far."""
        path = folder / f"{step}.json"
        if not path.exists():
            return cls(step, 0.0)
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(**found | {"figures": tuple(Figure(**figure) for figure in found["figures"])})


def to_table(results: Iterable[Result], bars: bool) -> Table:
    """Makes a table of all steps, one row per figure; with the bars, which are those of a GPU, or without."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("step", "figure", "value", "unit", "bar"):
        table.add_column(heading, justify="right" if heading == "value" else "left", overflow="fold")
    for result in results:
        name = f"{result.step} ({result.seconds:.0f} s)"
        for figure in result.figures:
            table.add_row(name, figure.name, escape(figure.text), figure.unit, figure.bar if bars else "")
            name = ""
        if result.error:
            table.add_row(name, escape(result.error), "failed", "", "", style="red")
        table.add_section()
    return table


def rate(work: Callable[[], object], count: int, device: Device, seconds: float = 0.5, repeats: int = 3) -> float:
    """Measures the rate of `work`: the median of its runs after one that warms up.

    Args:
        work: the function to time.
        count: items that one run processes.
        device: the device to wait for after each run.
        seconds: least time of all runs together.
        repeats: least number of runs.

    Returns:
        Items a second.
    """
    work()
    device.wait()
    taken: list[float] = []
    while len(taken) < repeats or sum(taken) < seconds:
        started = time.perf_counter()
        work()
        device.wait()
        taken.append(time.perf_counter() - started)
    return count / median(taken)


def count_unequal(ours: Sequence[object], theirs: Sequence[object]) -> int:
    """Number of positions at which the sequences differ; both have the same length."""
    return sum(a != b for a, b in zip(ours, theirs, strict=True))
