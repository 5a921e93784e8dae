"""Where the time of SCORE goes: every stage with the machine to itself, then all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from profiling.sampler import Look, Sampler
from profiling.spans import Event, Spans

BUSY = 0.9
"""Share of its cores a process uses that has no time left."""


@dataclass(frozen=True)
class StageFigures:
    """Seconds at work `alone`, while no other stage was, and `together`; `starved` and `blocked` as in `Span`."""

    stage: str
    pairs: int
    passed: int
    alone: float
    together: float
    starved: float
    blocked: float

    @property
    def rate(self) -> float:
        """Pairs a second, alone."""
        return self.pairs / self.alone if self.alone else 0.0


@dataclass(frozen=True)
class Profile:
    """`seconds`: all stages at once; `in_turn`: one after the other. `cpu_seconds`: of all cores, at once."""

    pairs: int
    threads: int
    seconds: float
    in_turn: float
    cpu_seconds: float
    peak: int
    stages: tuple[StageFigures, ...]

    @classmethod
    def of(cls, pairs: int, threads: int, alone: Spans, in_turn: Sampler, together: Spans, at_once: Sampler) -> Profile:
        stages = [
            StageFigures(name, span.rows, span.passed, alone[name].seconds, span.seconds, span.starved, span.blocked)
            for name, span in together.items()
        ]
        figures = (at_once.seconds, in_turn.seconds, at_once.cpu_seconds, at_once.peak)
        return cls(pairs, threads, *figures, tuple(stages))

    @property
    def slowest(self) -> StageFigures:
        return max(self.stages, key=lambda figures: figures.alone)

    @property
    def efficiency(self) -> float:
        """End to end ÷ the slowest stage alone. Where stages share cores it cannot reach 1: see `cores_busy`."""
        return self.slowest.alone / self.seconds

    @property
    def cores_busy(self) -> float:
        """Share of the threads' time that was work."""
        return self.cpu_seconds / (self.threads * self.seconds)

    @property
    def verdict(self) -> str:
        """Which stage limits, and what would lift it."""
        work, first = sum(figures.alone for figures in self.stages), self.slowest
        share = first.alone / work if work else 0.0
        costliest = f"{first.stage} takes {share:.0%} of the work"
        if self.cores_busy >= BUSY:
            return f"The cores limit ({self.cores_busy:.0%} busy): {costliest}; a quicker engine for it, or more cores."
        if first.alone >= BUSY * self.seconds:
            return f"{first.stage} limits: the others wait for it; a quicker engine for it, or more devices."
        return f"Waiting limits (cores {self.cores_busy:.0%} busy): {costliest}, yet none works all the time."

    def to_dict(self) -> dict[str, Any]:
        derived = {
            "pairs_per_second": round(self.pairs / self.seconds, 2),
            "pairs_per_second_in_turn": round(self.pairs / self.in_turn, 2),
            "efficiency": round(self.efficiency, 4),
            "cores_busy": round(self.cores_busy, 4),
            "verdict": self.verdict,
        }
        return asdict(self) | derived


def to_trace(events: Sequence[Event], looks: Iterable[Look]) -> dict[str, Any]:
    """What every thread did and when, for ui.perfetto.dev: Google's Trace Event Format, times in microseconds.

    One complete event (`X`) a batch and stage; counters (`C`) of busy cores and memory.
    """
    start = min((event.started for event in events), default=0.0)
    threads = {name: number for number, name in enumerate(dict.fromkeys(event.thread for event in events), 1)}

    def at(moment: float) -> float:
        return round((moment - start) * 1e6, 1)

    names: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": name}}
        for name, number in threads.items()
    ]
    batches = [
        {"ph": "X", "name": event.stage, "pid": 1, "tid": threads[event.thread], "ts": at(event.started),
         "dur": round(event.seconds * 1e6, 1), "args": {"pairs": event.rows}}
        for event in events
    ]  # fmt: skip
    counters = [
        {"ph": "C", "name": name, "pid": 1, "ts": at(look.at), "args": {name: value}}
        for look in looks
        for name, value in (("busy cores", round(look.cores, 2)), ("resident MB", round(look.resident / 1e6)))
    ]
    return {"displayTimeUnit": "ms", "traceEvents": names + batches + counters}
