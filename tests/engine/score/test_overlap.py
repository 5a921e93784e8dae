"""Stages that run concurrently: no row is lost or reordered, and no thread is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import danqing.engine.score.loop
from danqing.engine.core.spans import Spans
from danqing.engine.phases import curate
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.settings import Settings
from danqing.engine.score.overlap import Overlap
from danqing.engine.stages.decode import MIN_WEIGHT_PIXELS, Decode
from danqing.engine.stages.resize import KernelResizer
from tests.conftest import HEEDS_CTRL_C, started
from tests.engine.score.test_run import crawl, samples, tree

__all__ = ["crawl"]


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("danqing ")]


@pytest.mark.parametrize("room", [0, 1, 3])
def test_all_items_come_in_order(room: int) -> None:
    with Overlap(Spans(), room) as overlap:
        stream: Iterator[int] = iter(range(1000))
        for number in range(5):
            stream = overlap.prefetch((item + 1 for item in stream), str(number))
        assert len(workers()) == (5 if room else 0)
        assert list(stream) == list(range(5, 1005))
    assert not workers()


def test_two_streams_run_concurrently() -> None:
    together = threading.Barrier(2, timeout=20)

    def meet(stream: Iterator[int], at: int) -> Iterator[int]:
        for item in stream:
            if item == at:
                together.wait()
            yield item

    with Overlap(Spans()) as overlap:
        first = overlap.prefetch(meet(iter(range(10)), 5), "first")
        assert list(overlap.prefetch(meet(first, 4), "second")) == list(range(10))


def test_a_queue_is_bounded() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for item in range(100):
            made.append(item)
            yield item

    with Overlap(Spans(), room=2) as overlap:
        stream = overlap.prefetch(make(), "made")
        for item in stream:
            time.sleep(0.002)
            assert len(made) <= item + 1 + 3  # consumed, in the queue, and the one that waits for space


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_exception_is_raised_in_the_consumer_and_stops_all_threads(at: int) -> None:
    def fail_at(stream: Iterator[int], number: int) -> Iterator[int]:
        for item in stream:
            if number == at and item == 3:
                raise OSError("disk full")
            yield item

    got: list[int] = []
    with pytest.raises(OSError, match="disk full"), Overlap(Spans()) as overlap:
        stream: Iterator[int] = iter(range(10**9))
        for number in range(3):
            stream = overlap.prefetch(fail_at(stream, number), str(number))
        got.extend(stream)
    assert not workers()


def test_leaving_early_stops_all_threads() -> None:
    with pytest.raises(KeyboardInterrupt), Overlap(Spans()) as overlap:
        stream: Iterator[int] = iter(range(10**9))
        for number in range(4):
            stream = overlap.prefetch(map(abs, stream), str(number))
        for item in stream:
            if item == 5:
                raise KeyboardInterrupt
    assert not workers()


def test_spans_record_waits() -> None:
    def slowly(stream: Iterator[int]) -> Iterator[int]:
        for item in stream:
            time.sleep(0.02)
            yield item

    spans = Spans()
    with Overlap(spans) as overlap:
        quick = overlap.prefetch(iter(range(20)), "quick")
        slow = overlap.prefetch(slowly(quick), "slow")
        assert list(overlap.prefetch(map(abs, slow), "last")) == list(range(20))
    assert list(spans) == ["quick", "slow", "last"]
    waits = spans["quick"].blocked_seconds, spans["last"].starved_seconds
    assert min(waits) > 0.3
    slow, quick, last = spans["slow"], spans["quick"], spans["last"]
    assert max(slow.starved_seconds, slow.blocked_seconds, quick.starved_seconds, last.blocked_seconds) < min(waits)


def test_overlap_changes_no_byte(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(danqing.engine.score.loop, "READ_ROWS", 2)
    curate(crawl, tmp_path / "overlapped", plain_recipe, Settings())
    score = danqing.engine.score.loop.score
    monkeypatch.setattr("danqing.engine.score.workers.score", lambda *given, **named: score(*given, **named, room=0))
    curate(crawl, tmp_path / "in_turn", plain_recipe, Settings())
    assert tree(tmp_path / "overlapped") == tree(tmp_path / "in_turn")
    assert not workers()


def test_a_buffer_that_is_reused_too_soon_changes_the_features(
    crawl: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the comparison of runs would find a vendor part that does this on a GPU."""
    path = tmp_path / "features.yaml"
    path.write_text(
        "recipe: features\nmodels: {image_embedding: efficientnet-lite0-conse}\n"
        "criteria: {readable: {min: 1}, redundancy: {within: 0.1}}\n"
    )
    recipe, settings = load_recipe(path), Settings(threads=1)
    monkeypatch.setattr(Decode, "capacity", 6 * MIN_WEIGHT_PIXELS)
    curate(crawl, tmp_path / "sound", recipe, settings)
    curate(crawl, tmp_path / "again", recipe, settings)
    assert tree(tmp_path / "again") == tree(tmp_path / "sound")
    resize, buffers = KernelResizer.__call__, [np.empty((64, 224, 224, 3), np.uint8)]

    def into_the_same(self: KernelResizer, pictures: list[np.ndarray]) -> list[np.ndarray]:
        found = [buffer[: len(pictures)] for buffer in buffers]
        for buffer, resized in zip(found, resize(self, pictures), strict=True):
            buffer[:] = resized
        return found

    monkeypatch.setattr(KernelResizer, "__call__", into_the_same)
    curate(crawl, tmp_path / "reused", recipe, settings)
    assert tree(tmp_path / "reused") != tree(tmp_path / "sound")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_with_complete_shards(
    make_shard: Any, plain_recipe: Recipe, tmp_path: Path, sent: signal.Signals
) -> None:
    shard = make_shard(samples(0, 40))
    paths = [tmp_path / f"copy{n:03d}.tar" for n in range(240)]  # far more than can be scored before the signal
    for path in paths:
        os.link(shard, path)
    out = tmp_path / "out"
    command = [*HEEDS_CTRL_C, sys.executable, "-m", "danqing.engine.cli.main", "score", *map(str, paths)]
    command += ["-o", str(out), "--recipe", str(tmp_path / "plain.yaml")]
    with started(command, stderr=subprocess.PIPE) as process:
        while not list(out.glob("scores/*.parquet")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(sent)
        _, said = process.communicate(timeout=240)
    assert process.returncode == 128 + sent
    finished = sorted(out.glob("scores/[!.]*.parquet"))
    assert 0 < len(finished) < len(paths) and not list(out.rglob("*.part"))
    assert f"; {len(finished)} of {len(paths)} shards of {out} are scored; the same command goes on" in said.decode()
    assert all(pq.read_metadata(path).num_rows == 40 for path in finished)
