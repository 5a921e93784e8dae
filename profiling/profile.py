"""Where the time of SCORE goes: every stage with the machine to itself, then all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from danqing.engine.core.nvml import GpuLook
from danqing.engine.core.spans import Event, Span, Spans
from danqing.profiling.sampler import Look, Sampler

BUSY = 0.9
"""Share of its cores a process uses that has no time left."""


@dataclass(frozen=True)
class Limits:
    """What this machine cannot exceed: `pairs` a second of a stage's codec or network alone, by stage; bytes a second
    that all cores together read and write while they `copy` memory."""

    pairs: Mapping[str, float]
    copy: float


@dataclass(frozen=True)
class StageFigures:
    """Seconds at work: `alone`, while no other stage was (None: not measured), and `together`; `starved`, `blocked`,
    `fill`, and bytes `taken`, `made`, `up`, `down`, `held` as in `Span`. `limit`: see `Limits`."""

    stage: str
    pairs: int
    passed: int
    failed: int
    alone: float | None
    together: float
    starved: float
    blocked: float
    fill: float | None
    taken: int
    made: int
    up: int
    down: int
    held: int
    limit: float | None

    @classmethod
    def of(cls, name: str, span: Span, alone: Span | None, limit: float | None) -> StageFigures:
        return cls(
            stage=name, pairs=span.rows, passed=span.passed, failed=span.failed,
            alone=alone.seconds if alone else None, together=span.seconds, starved=span.starved, blocked=span.blocked,
            fill=span.fill, taken=span.taken, made=span.made, up=span.up, down=span.down, held=span.held, limit=limit,
        )  # fmt: skip

    @property
    def work(self) -> float:
        """Seconds, alone where that was measured."""
        return self.together if self.alone is None else self.alone

    @property
    def rate(self) -> float:
        """Pairs a second of work."""
        return self.pairs / self.work if self.work else 0.0

    def share(self, copy: float) -> float:
        """How near it comes to its limit; a stage that is all our own, to copying what it takes in and makes."""
        if self.limit:
            return self.rate / self.limit
        return (self.taken + self.made) / self.work / copy if self.work else 0.0


@dataclass(frozen=True)
class Profile:
    """`seconds`: all stages at once; `in_turn`: one after the other, where that was measured. `cpu_seconds`: of all
    cores, at once. `peak`: bytes resident. `copy`: see `Limits`. `gpu`: means over the run, of `memory` the most."""

    pairs: int
    threads: int
    seconds: float
    in_turn: float | None
    cpu_seconds: float
    peak: int
    copy: float
    stages: tuple[StageFigures, ...]
    gpu: GpuLook | None = None

    @classmethod
    def of(
        cls, threads: int, limits: Limits, together: Spans, at_once: Sampler, alone: Spans, in_turn: Sampler | None
    ) -> Profile:
        stages = [
            StageFigures.of(name, span, alone.get(name), limits.pairs.get(name)) for name, span in together.items()
        ]
        return cls(
            pairs=together["read"].rows,
            threads=threads,
            seconds=at_once.seconds,
            in_turn=in_turn.seconds if in_turn else None,
            cpu_seconds=at_once.cpu_seconds,
            peak=at_once.peak,
            copy=limits.copy,
            stages=tuple(stages),
            gpu=_over_all([look.gpu for look in at_once.looks if look.gpu]),
        )

    @property
    def slowest(self) -> StageFigures:
        return max(self.stages, key=lambda figures: figures.work)

    @property
    def efficiency(self) -> float | None:
        """End to end ÷ the slowest stage alone. Where stages share cores it cannot reach 1: see `cores_busy`."""
        return None if self.slowest.alone is None else self.slowest.alone / self.seconds

    @property
    def cores_busy(self) -> float:
        """Share of the threads' time that was work."""
        return self.cpu_seconds / (self.threads * self.seconds)

    @property
    def copied(self) -> tuple[float, float]:
        """Bytes a pair up to the device, and down from it."""
        ways = (sum(figures.up for figures in self.stages), sum(figures.down for figures in self.stages))
        return ways[0] / max(self.pairs, 1), ways[1] / max(self.pairs, 1)

    @property
    def verdict(self) -> str:
        """Which stage limits, and what would lift it."""
        total, first = sum(figures.work for figures in self.stages), self.slowest
        share = first.work / total if total else 0.0
        costliest = f"{first.stage} takes {share:.0%} of the work"
        if first.limit:
            costliest += f", at {first.share(self.copy):.0%} of its limit"
        if self.cores_busy >= BUSY:
            return f"The cores limit ({self.cores_busy:.0%} busy): {costliest}; a quicker engine for it, or more cores."
        if first.together >= BUSY * self.seconds:
            return f"{first.stage} limits: the others wait for it; a quicker engine for it, or more devices."
        return f"Waiting limits (cores {self.cores_busy:.0%} busy): {costliest}, yet none works all the time."

    def to_dict(self) -> dict[str, Any]:
        derived = {
            "pairs_per_second": round(self.pairs / self.seconds, 2),
            "pairs_per_second_in_turn": round(self.pairs / self.in_turn, 2) if self.in_turn else None,
            "bytes_up_per_pair": round(self.copied[0], 1),
            "bytes_down_per_pair": round(self.copied[1], 1),
            "efficiency": self.efficiency and round(self.efficiency, 4),
            "cores_busy": round(self.cores_busy, 4),
            "verdict": self.verdict,
        }
        stages = [asdict(figures) | {"share_of_limit": round(figures.share(self.copy), 4)} for figures in self.stages]
        gpu = self.gpu and {name: None if np.isnan(value) else value for name, value in self.gpu._asdict().items()}
        return asdict(self) | {"stages": stages, "gpu": gpu} | derived


def _over_all(looks: Sequence[GpuLook]) -> GpuLook | None:
    if not looks:
        return None
    means = GpuLook(*(float(np.mean(column)) for column in zip(*looks, strict=True)))
    return means._replace(memory=max(look.memory for look in looks))


def to_trace(events: Sequence[Event], looks: Iterable[Look]) -> dict[str, Any]:
    """What every thread did and when, for ui.perfetto.dev: Google's Trace Event Format, times in microseconds.

    One complete event (`X`) a batch and stage; counters (`C`) of busy cores and memory, and of the GPU's figures.
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
        for name, value in _counters(look)
    ]
    return {"displayTimeUnit": "ms", "traceEvents": names + batches + counters}


def _counters(look: Look) -> list[tuple[str, float]]:
    gpu = [(f"GPU {name}", value) for name, value in look.gpu._asdict().items()] if look.gpu else []
    host = [("busy cores", round(look.cores, 2)), ("resident MB", round(look.resident / 1e6))]
    return host + [(name, value) for name, value in gpu if not np.isnan(value)]
