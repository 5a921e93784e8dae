"""Scoring with several workers; each uses the CPU."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from danqing.engine.cli.commands import app
from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.phases import curate, score_inputs
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.lock import lock_folder
from danqing.engine.run.settings import Settings
from tests.conftest import HEEDS_CTRL_C, started
from tests.engine.score.test_run import crawl, samples, tree

__all__ = ["crawl"]


def test_two_workers_have_the_result_of_one(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, _, alone = curate(crawl, tmp_path / "one", plain_recipe, Settings())
    command = ["curate", *crawl, "-o", str(tmp_path / "two"), "--recipe", str(tmp_path / "plain.yaml")]
    assert main([*command, "--devices", "cpu,cpu"]) == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert "score: 17 pairs in" in capfd.readouterr().err  # both workers advance one progress
    run = Run.open(tmp_path / "two")
    assert run.manifest["counts"]["scored_shards"] == 3 and run.manifest["engines"] == {}
    log = (run.folder / "run.log").read_text()
    assert len(re.findall(r" scored 0000\d: .* \(worker [01] on cpu\)\n", log)) == 3
    assert sum(map(int, re.findall(r" worker [01] on cpu: \d shards, (\d+) pairs", log))) == 17
    assert main([*command, "--devices", "cpu,cpu"]) == 0  # nothing left to do
    run, spans = score_inputs(crawl, tmp_path / "three", plain_recipe, Settings(devices=("cpu", "cpu")))
    assert {name: span.rows for name, span in spans.items()} == {name: span.rows for name, span in alone.items()}
    assert sum(span.failed for span in spans.values()) == 2 and spans["caption"].dropped["words"] == 1


def test_an_error_of_one_worker_stops_all(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DanqingError, match="--device tpu: must be cpu"):
        score_inputs(crawl, tmp_path / "out", plain_recipe, Settings(devices=("cpu", "tpu")))
    command = ["score", *crawl, "-o", str(tmp_path / "other"), "--recipe", str(tmp_path / "plain.yaml")]
    assert main([*command, "--devices", "cpu,cpu", "--profile"]) == 2
    assert "one device at a time" in capsys.readouterr().err


def test_workers_share_a_gpu() -> None:
    def devices(*options: str) -> tuple[str, tuple[str, ...]]:
        _, bound, _ = app.parse_args(["score", "a.tar", "-o", "out", "--device", "cpu", *options])
        settings = bound.arguments["scoring"].settings(several=bound.arguments.get("several"))
        return settings.device, settings.devices

    assert devices("--devices", "0,1", "--workers-per-gpu", "2") == ("cuda:0", ("cuda:0", "cuda:1") * 2)
    assert devices("--device", "cuda", "--workers-per-gpu", "3") == ("cuda", ("cuda",) * 3)
    assert devices("--workers-per-gpu", "2") == ("cpu", ("cpu", "cpu"))
    assert devices("--device", "cuda:1") == devices("--devices", "1") == ("cuda:1", ())


def workers_of(run: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(run.pid).children()
    workers = [child for child in children if any("spawn_main" in word for word in child.cmdline())]
    assert len(workers) == 2
    return workers


def is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # ended, but not yet reaped
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def long_run(make_shard: Any, plain_recipe: Recipe, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A running process with two workers, and far more shards than can be scored during the test."""
    shard = make_shard(samples(0, 40))
    paths = [tmp_path / f"copy{number:03d}.tar" for number in range(400)]
    for path in paths:
        os.link(shard, path)
    command = [*HEEDS_CTRL_C, sys.executable, "-m", "danqing.engine.cli.main", "score", *map(str, paths)]
    command += ["-o", str(tmp_path / "out"), "--recipe", str(tmp_path / "plain.yaml"), "--devices", "cpu,cpu"]
    with started(command, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 240
        while len(list(tmp_path.glob("out/scores/*.parquet"))) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        yield process
    finished = sorted(tmp_path.glob("out/scores/*.parquet"))
    assert 0 < len(finished) < len(paths) and all(pq.read_metadata(path).num_rows == 40 for path in finished)


def test_ctrl_c_stops_all_workers(long_run: subprocess.Popen[bytes]) -> None:
    workers = workers_of(long_run)
    long_run.send_signal(signal.SIGINT)
    _, said = long_run.communicate(timeout=240)
    assert long_run.returncode == 130
    assert b"danqing: interrupted; " in said and b" of 400 shards of " in said and b"Traceback" not in said
    assert not any(map(is_running, workers))


def test_a_killed_worker_is_an_error_with_its_signal(
    long_run: subprocess.Popen[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workers = workers_of(long_run)
    assert main(["decide", str(tmp_path / "out")]) == 2  # while the run is being scored
    assert f"in use by process {long_run.pid} on " in capsys.readouterr().err
    workers[1].kill()
    _, said = long_run.communicate(timeout=240)
    assert long_run.returncode == 2
    assert f"worker danqing cpu (process {workers[1].pid}) was killed by SIGKILL".encode() in said
    assert not any(map(is_running, workers))


def test_workers_end_with_a_parent_that_is_killed(long_run: subprocess.Popen[bytes], tmp_path: Path) -> None:
    workers = workers_of(long_run)
    os.kill(workers[0].pid, signal.SIGSTOP)  # as if it were busy
    long_run.kill()
    long_run.communicate(timeout=240)
    psutil.wait_procs(workers, timeout=240)
    assert not any(map(is_running, workers))
    with lock_folder(tmp_path / "out"):
        assert not list((tmp_path / "out").rglob("*.part"))
