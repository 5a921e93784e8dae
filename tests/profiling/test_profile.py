"""Profiles: figures that add up, a trace, and a verdict that names the stage."""

from __future__ import annotations

import json
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import danqing.engine.core.spans
import danqing.profiling.sampler
from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.memory import Memory
from danqing.engine.core.spans import Span, Spans
from danqing.engine.phases import curate
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from danqing.engine.sources import Layout, find_shards, open_shard
from danqing.engine.stages.decode import MIN_WEIGHT_PIXELS
from danqing.profiling.profile import Profile, StageFigures
from danqing.profiling.profiler import profile
from danqing.profiling.sampler import Sampler
from tests.engine.score.test_run import crawl, tree

__all__ = ["crawl"]


def pictures_in(tar: str) -> list[bytes]:
    return [sample.image for sample in open_shard(find_shards([tar])[0], Layout())]


def test_a_profile_has_figures_of_every_stage(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    found = profile(crawl, tmp_path / "profile", plain_recipe, Settings(threads=2))
    stages = {figures.stage: figures for figures in found.stages}
    assert list(stages) == ["read", "caption", "refine", "header", "decode", "pixels"]
    assert found.pairs == stages["read"].pairs == stages["caption"].pairs == 17 and found.threads == 2
    assert stages["decode"].pairs == stages["header"].passed == 13 and stages["pixels"].passed == 12
    assert all(figures.sequential_seconds > 0 and figures.pipelined_seconds > 0 for figures in found.stages)
    assert max(f.pipelined_seconds + f.starved_seconds + f.blocked_seconds for f in found.stages) <= found.seconds
    # The runs take milliseconds on shared cores, so only the order of magnitude is checked.
    assert found.efficiency is not None and 0 < found.efficiency < 3
    assert 0 < found.cores_busy < 1.5 and found.peak > 50e6
    assert [name for name, figures in stages.items() if figures.failed] == ["header", "decode"]
    assert stages["decode"].limit and 0.05 < stages["decode"].share(found.copy) < 5 and 1e9 < found.copy < 1e12
    assert stages["header"].limit is None and 0 < stages["header"].share(found.copy) < 1
    encoded = sum(len(picture) for tar in crawl for picture in pictures_in(tar))
    assert (
        encoded < stages["read"].bytes_written < encoded + 17 * 100
        and stages["decode"].bytes_written == 12 * (160 * 120 * 3) + 13
    )
    assert (
        stages["decode"].fill == pytest.approx(13 * MIN_WEIGHT_PIXELS / Memory().pixels)
        and stages["header"].fill is None
    )
    assert found.copied == (0, 0)  # on a CPU nothing is copied
    written = json.loads((tmp_path / "profile" / "profile.json").read_text())
    assert written["verdict"] == found.verdict and len(written["stages"]) == 6
    page = (tmp_path / "profile" / "profile.html").read_text()
    assert page.count("<rect") >= 6 and found.verdict.split(":")[0] in page
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == [
        "profile.html", "profile.json", "trace.json",
    ]  # fmt: skip


def test_inputs_without_a_row_are_refused(plain_recipe: Recipe, tmp_path: Path) -> None:
    tarfile.open(tmp_path / "empty.tar", "w").close()
    with pytest.raises(DanqingError, match=r"empty\.tar: no rows here"):
        profile([str(tmp_path / "empty.tar")], tmp_path / "profile", plain_recipe, Settings())


def test_the_trace_has_all_threads(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    assert main(["profile", *crawl, "-o", str(tmp_path / "p"), "--recipe", str(tmp_path / "plain.yaml")]) == 0
    trace = json.loads((tmp_path / "p" / "trace.json").read_text())["traceEvents"]
    threads = {event["tid"]: event["args"]["name"] for event in trace if event["name"] == "thread_name"}
    batches = [event for event in trace if event["ph"] == "X"]
    made_by = {event["name"]: threads[event["tid"]] for event in batches}
    assert made_by["read"] == "danqing read" and made_by["refine"] == made_by["header"] == "danqing refine"
    assert made_by["pixels"] == made_by["decode"] == "danqing decode"
    assert min(event["ts"] for event in batches) == 0 and all(event["dur"] > 0 for event in batches)
    assert sum(event["args"]["pairs"] for event in batches if event["name"] == "decode") == 13
    assert {event["name"] for event in trace if event["ph"] == "C"} == {"busy cores", "resident MB"}


def of(*sequential: float, seconds: float, cpu: float) -> Profile:
    spans = [Span(rows=100, passed=100, seconds=each) for each in sequential]
    stages = tuple(StageFigures.of(f"s{n}", span, span, None) for n, span in enumerate(spans))
    return Profile(100, 2, seconds, sum(sequential), cpu, 0, 1e9, stages)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (of(1, 6, 3, seconds=10, cpu=19), "The cores are the limit (95% busy): s1 takes 60% of the processing time"),
        (of(1, 9.5, 1, seconds=10, cpu=11), "s1 is the limit"),
        (of(2, 3, 2, seconds=10, cpu=7), "Waiting is the limit (cores 35% busy)"),
    ],
)
def test_the_verdict_names_the_limit(found: Profile, verdict: str) -> None:
    assert found.verdict.startswith(verdict)
    assert found.efficiency == found.slowest.sequential_seconds / 10 and found.slowest.stage == "s1"


def test_long_runs_keep_a_bounded_number_of_readings_and_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(danqing.profiling.sampler, "INTERVAL_SECONDS", 0.001)
    monkeypatch.setattr(danqing.profiling.sampler, "MAX_READINGS", 20)
    with Sampler() as watched:
        time.sleep(0.5)
    gaps = np.diff([reading.at for reading in watched.readings[:-1]])
    assert 5 < len(watched.readings) <= 21 and watched.readings[-1].at - watched.readings[0].at > 0.3
    assert gaps.max() < 0.4 and watched.peak >= max(reading.resident for reading in watched.readings)
    monkeypatch.setattr(danqing.engine.core.spans, "MAX_EVENTS", 3)
    spans = Spans(profiled=True)
    for _ in range(5):
        with spans("stage", 2):
            pass
    assert len(spans.events) == 3 and spans["stage"].rows == 10


def test_the_sampler_measures_busy_cores() -> None:
    def work() -> None:
        until = time.thread_time() + 0.5
        while time.thread_time() < until:
            sum(range(1000))

    with Sampler() as busy:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    with Sampler() as idle:
        time.sleep(0.5)
    assert 0.45 < busy.cpu_seconds < 0.8 and idle.cpu_seconds < 0.2
    assert len(idle.readings) >= 3 and idle.seconds >= 0.5


def test_a_run_can_be_profiled(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curate(crawl, tmp_path / "plain", plain_recipe, Settings())
    command = ["curate", *crawl, "-o", str(tmp_path / "out"), "--recipe", str(tmp_path / "plain.yaml"), "--profile"]
    assert main(command) == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")
    found = json.loads((tmp_path / "out" / "profile" / "profile.json").read_text())
    assert found["verdict"] in capsys.readouterr().out
    assert found["sequential_seconds"] is found["efficiency"] is None and found["pairs"] == 17
    decode = next(stage for stage in found["stages"] if stage["stage"] == "decode")
    assert (
        decode["pairs"] == 13
        and decode["sequential_seconds"] is None
        and decode["pipelined_seconds"] > 0
        and decode["limit"] > 0
    )
    assert (tmp_path / "out" / "profile" / "trace.json").exists()
    assert main(command) == 0 and "already scored" in capsys.readouterr().out
