"""Measures upper bounds of this machine: each stage's codec or network alone, and copying memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, islice

import numpy as np

from danqing.engine.core.batch import pack
from danqing.engine.core.device import Device
from danqing.engine.recipe.plan import Plan
from danqing.engine.score.loop import apply_stage, batches_of, pack_weight
from danqing.engine.sources import Layout, Shard, open_shard
from danqing.engine.stages import Context
from danqing.profiling.profile import Limits

MAX_PAIRS = 64
"""Maximum number of pairs to measure with."""
MIN_SECONDS = 0.5
"""Minimum duration of a measurement."""
COPY_BYTES = 128 << 20
"""Bytes copied per call, over all threads: more than the caches hold."""


def measure_limits(shards: Iterable[Shard], layout: Layout, plan: Plan, context: Context) -> Limits:
    """Runs the stages on the first pairs, without gates, and measures the vendor part of each stage on its input.

    This also compiles the kernels and opens the sessions, so a profile that follows does not measure either.

    Args:
        shards: where the pairs come from.
        layout: how the shards are read.
        plan: the stages.
        context: what the stages need to open.
    """
    found: dict[str, float] = {}
    firsts = (batches_of(shard, islice(open_shard(shard, layout), MAX_PAIRS), context.memory) for shard in shards)
    batch = next(chain.from_iterable(firsts), None)
    for step in plan.steps:
        stage = step.stage(context)
        if batch is None:
            break
        if stage.capacity is not None:
            batch = next(pack([batch], 1.0, partial(pack_weight, stage)))
        apply_stage(stage, batch)
        sound = batch.take(np.array([error is None for error in batch["error"]]))
        batch = sound if len(sound) else None
        if batch is not None:
            if alone := stage.vendor_part(batch):
                found[stage.name] = _rate(alone, context.device)
            batch.drop(step.spent)
    return Limits(found, _copy_bandwidth(context.device))


def _rate(function: Callable[[], int], device: Device) -> float:
    """Calls the function repeatedly; returns the sum of its results per second."""
    function()
    device.wait()
    done, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < MIN_SECONDS or not done:
        done += function()
        device.wait()
    return done / seconds


def _copy_bandwidth(device: Device) -> float:
    """Measures how many bytes per second all threads together read and write."""
    size = COPY_BYTES // device.threads
    sides = [(np.ones(size, np.uint8), np.ones(size, np.uint8)) for _ in range(device.threads)]

    def copy() -> int:
        device.map(lambda pair: np.copyto(*pair), sides)
        return 2 * size * len(sides)

    return _rate(copy, device)
