"""How fast this machine could be: each stage's codec or network alone, and copying memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, islice

import numpy as np

from danqing.engine.core.batch import Batch, pack
from danqing.engine.core.device import Device
from danqing.engine.core.memory import Memory
from danqing.engine.recipe.plan import Plan
from danqing.engine.score.loop import batches_of, load, work
from danqing.engine.sources import Layout, Shard, open_shard
from danqing.engine.stages import Context
from danqing.profiling.profile import Limits

FIRST = 64
"""Pairs that are measured on, at most."""
SECONDS = 0.5
"""How long something is repeated, at least."""
COPIED = 128 << 20
"""Bytes copied at a time, by all threads together: more than caches hold."""


def measure_limits(shards: Iterable[Shard], layout: Layout, plan: Plan, context: Context) -> Limits:
    """Scores the first pairs, ungated, and measures on the way; kernels are compiled and sessions opened meanwhile."""
    found: dict[str, float] = {}
    batch = _first(shards, layout, context.memory)
    for step in plan.steps:
        stage = step.stage(context)
        if batch is None:
            break
        if stage.capacity is not None:
            batch = next(pack([batch], 1.0, partial(load, stage)))
        work(stage, batch)
        sound = batch.take(np.array([error is None for error in batch["error"]]))
        batch = sound if len(sound) else None
        if batch is not None:
            if alone := stage.vendor_part(batch):
                found[stage.name] = _rate(alone, context.device)
            batch.drop(step.spent)
    return Limits(found, _copy_bandwidth(context.device))


def _first(shards: Iterable[Shard], layout: Layout, memory: Memory) -> Batch | None:
    firsts = (batches_of(shard, islice(open_shard(shard, layout), FIRST), memory) for shard in shards)
    return next(chain.from_iterable(firsts), None)


def _rate(function: Callable[[], int], device: Device) -> float:
    """What it counts, a second of the device's."""
    function()
    device.wait()
    done, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < SECONDS or not done:
        done += function()
        device.wait()
    return done / seconds


def _copy_bandwidth(device: Device) -> float:
    """Bytes a second that all threads read and write."""
    size = COPIED // device.threads
    sides = [(np.ones(size, np.uint8), np.ones(size, np.uint8)) for _ in range(device.threads)]

    def copy() -> int:
        device.map(lambda pair: np.copyto(*pair), sides)
        return 2 * size * len(sides)

    return _rate(copy, device)
