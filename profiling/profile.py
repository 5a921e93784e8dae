"""Profile of SCORE: what each stage takes, run sequentially and pipelined, and what limits the throughput."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from danqing.engine.core.nvml import GpuReading
from danqing.engine.core.spans import Event, Span, Spans
from danqing.profiling.sampler import Reading, Sampler

BUSY_SHARE = 0.9
"""From this share on, cores or a stage count as fully busy."""


@dataclass(frozen=True)
class Limits:
    """Upper bounds of this machine.

    Attributes:
        pairs: stage → pairs per second of its codec or network alone.
        copy: bytes per second that all cores together read and write when they copy memory.
    """

    pairs: Mapping[str, float]
    copy: float


@dataclass(frozen=True)
class StageFigures:
    """Figures of one stage.

    Attributes:
        pairs, passed, failed: rows processed, kept by the gate, and with an error.
        sequential_seconds: time of processing in the sequential run; None if there was none.
        pipelined_seconds: time of processing in the pipelined run.
        starved_seconds, blocked_seconds, fill, bytes_read, bytes_written, up, down, peak_device_bytes: of the pipelined
            run; see `Span`.
        limit: pairs per second of the stage's codec or network alone; None if it has none.
    """

    stage: str
    pairs: int
    passed: int
    failed: int
    sequential_seconds: float | None
    pipelined_seconds: float
    starved_seconds: float
    blocked_seconds: float
    fill: float | None
    bytes_read: int
    bytes_written: int
    up: int
    down: int
    peak_device_bytes: int
    limit: float | None

    @classmethod
    def of(cls, name: str, span: Span, sequential: Span | None, limit: float | None) -> StageFigures:
        """Makes the figures from the spans of the pipelined and, if there was one, of the sequential run."""
        return cls(
            stage=name,
            pairs=span.rows,
            passed=span.passed,
            failed=span.failed,
            sequential_seconds=sequential.seconds if sequential else None,
            pipelined_seconds=span.seconds,
            starved_seconds=span.starved_seconds,
            blocked_seconds=span.blocked_seconds,
            fill=span.fill,
            bytes_read=span.bytes_read,
            bytes_written=span.bytes_written,
            up=span.up,
            down=span.down,
            peak_device_bytes=span.peak_device_bytes,
            limit=limit,
        )

    @property
    def work(self) -> float:
        """Seconds of processing, in the sequential run if there was one."""
        return self.pipelined_seconds if self.sequential_seconds is None else self.sequential_seconds

    @property
    def rate(self) -> float:
        """Pairs per second of processing."""
        return self.pairs / self.work if self.work else 0.0

    def share(self, copy: float) -> float:
        """Returns the share of the upper bound that the stage reaches, 0 to 1.

        The bound of a stage without a codec or network is copying its inputs and outputs.

        Args:
            copy: see `Limits`.
        """
        if self.limit:
            return self.rate / self.limit
        return (self.bytes_read + self.bytes_written) / self.work / copy if self.work else 0.0


@dataclass(frozen=True)
class Profile:
    """Profile of a scoring.

    Attributes:
        pairs: pairs read.
        threads: host threads of the device.
        seconds: duration of the pipelined run.
        sequential_seconds: duration of the sequential run; None if there was none.
        cpu_seconds: CPU time of all cores, in the pipelined run.
        peak: largest resident memory, in bytes.
        copy: see `Limits`.
        stages: the figures of each stage.
        gpu: means over the pipelined run, and the maximum of `memory`; None on a CPU.
    """

    pairs: int
    threads: int
    seconds: float
    sequential_seconds: float | None
    cpu_seconds: float
    peak: int
    copy: float
    stages: tuple[StageFigures, ...]
    gpu: GpuReading | None = None

    @classmethod
    def of(
        cls,
        threads: int,
        limits: Limits,
        pipelined_spans: Spans,
        pipelined_sampler: Sampler,
        sequential_spans: Spans,
        sequential_sampler: Sampler | None,
    ) -> Profile:
        """Makes the profile.

        Args:
            threads: host threads of the device.
            limits: the upper bounds.
            pipelined_spans, pipelined_sampler: spans and sampler of the pipelined run.
            sequential_spans, sequential_sampler: of the sequential run; empty spans and None if there was none.
        """
        stages = [
            StageFigures.of(name, span, sequential_spans.get(name), limits.pairs.get(name))
            for name, span in pipelined_spans.items()
        ]
        return cls(
            pairs=pipelined_spans["read"].rows,
            threads=threads,
            seconds=pipelined_sampler.seconds,
            sequential_seconds=sequential_sampler.seconds if sequential_sampler else None,
            cpu_seconds=pipelined_sampler.cpu_seconds,
            peak=pipelined_sampler.peak,
            copy=limits.copy,
            stages=tuple(stages),
            gpu=_summarize([reading.gpu for reading in pipelined_sampler.readings if reading.gpu]),
        )

    @property
    def slowest(self) -> StageFigures:
        """The stage that takes the most seconds."""
        return max(self.stages, key=lambda figures: figures.work)

    @property
    def efficiency(self) -> float | None:
        """End-to-end rate ÷ rate of the slowest stage alone; below 1 if stages share cores (see `cores_busy`)."""
        return None if self.slowest.sequential_seconds is None else self.slowest.sequential_seconds / self.seconds

    @property
    def cores_busy(self) -> float:
        """CPU time ÷ (threads × duration)."""
        return self.cpu_seconds / (self.threads * self.seconds)

    @property
    def copied(self) -> tuple[float, float]:
        """Bytes per pair copied to the device, and from it."""
        up, down = (sum(figures.up for figures in self.stages), sum(figures.down for figures in self.stages))
        return up / max(self.pairs, 1), down / max(self.pairs, 1)

    @property
    def verdict(self) -> str:
        """Says what limits the throughput, and what would raise it."""
        total, slowest = sum(figures.work for figures in self.stages), self.slowest
        share = slowest.work / total if total else 0.0
        costliest = f"{slowest.stage} takes {share:.0%} of the processing time"
        if slowest.limit:
            costliest += f", at {slowest.share(self.copy):.0%} of its limit"
        if self.cores_busy >= BUSY_SHARE:
            return (
                f"The cores are the limit ({self.cores_busy:.0%} busy): {costliest}. "
                "Use a faster engine for it, or more cores."
            )
        if slowest.pipelined_seconds >= BUSY_SHARE * self.seconds:
            return (
                f"{slowest.stage} is the limit: the other stages wait for it. "
                "Use a faster engine for it, or more devices."
            )
        return f"Waiting is the limit (cores {self.cores_busy:.0%} busy): {costliest}, but no stage is always busy."

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of profile.json."""
        derived = {
            "pairs_per_second": round(self.pairs / self.seconds, 2),
            "pairs_per_second_sequential": round(self.pairs / self.sequential_seconds, 2)
            if self.sequential_seconds
            else None,
            "bytes_up_per_pair": round(self.copied[0], 1),
            "bytes_down_per_pair": round(self.copied[1], 1),
            "efficiency": self.efficiency and round(self.efficiency, 4),
            "cores_busy": round(self.cores_busy, 4),
            "verdict": self.verdict,
        }
        stages = [asdict(figures) | {"share_of_limit": round(figures.share(self.copy), 4)} for figures in self.stages]
        gpu = self.gpu and {name: None if np.isnan(value) else value for name, value in self.gpu._asdict().items()}
        return asdict(self) | {"stages": stages, "gpu": gpu} | derived


def _summarize(readings: Sequence[GpuReading]) -> GpuReading | None:
    if not readings:
        return None
    means = GpuReading(*(float(np.mean(column)) for column in zip(*readings, strict=True)))
    return means._replace(memory=max(reading.memory for reading in readings))


def to_trace(events: Sequence[Event], readings: Iterable[Reading]) -> dict[str, Any]:
    """Makes a timeline of all threads for ui.perfetto.dev.

    The format is Google's Trace Event Format, with times in microseconds: a complete event (`X`) per batch and stage,
    counters (`C`) of busy cores, memory and the GPU.
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
        {"ph": "C", "name": name, "pid": 1, "ts": at(reading.at), "args": {name: value}}
        for reading in readings
        for name, value in _counters(reading)
    ]
    return {"displayTimeUnit": "ms", "traceEvents": names + batches + counters}


def _counters(reading: Reading) -> list[tuple[str, float]]:
    gpu = [(f"GPU {name}", value) for name, value in reading.gpu._asdict().items()] if reading.gpu else []
    host = [("busy cores", round(reading.cores, 2)), ("resident MB", round(reading.resident / 1e6))]
    return host + [(name, value) for name, value in gpu if not np.isnan(value)]
