"""Several devices at once; here each is the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from engine.cli import main
from engine.curate import Settings, curate, score_inputs
from engine.errors import DanqingError
from engine.recipe import Recipe
from engine.run import Run
from tests.engine.test_run import crawl, samples, tree

__all__ = ["crawl"]


def test_two_workers_make_the_run_that_one_makes(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, _, alone = curate(crawl, tmp_path / "one", plain_recipe, Settings())
    command = ["curate", *crawl, "-o", str(tmp_path / "two"), "--recipe", str(tmp_path / "plain.yaml")]
    assert main([*command, "--devices", "cpu,cpu"]) == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert "17/17 pairs" in capfd.readouterr().err  # both tell the same bar
    run = Run.open(tmp_path / "two")
    assert run.manifest["counts"]["scored_shards"] == 3 and run.manifest["engines"] == {}
    assert main([*command, "--devices", "cpu,cpu"]) == 0  # nothing left to do
    run, spans = score_inputs(crawl, tmp_path / "three", plain_recipe, Settings(devices=("cpu", "cpu", "cpu")))
    assert {name: span.rows for name, span in spans.items()} == {name: span.rows for name, span in alone.items()}
    assert sum(span.failed for span in spans.values()) == 2 and spans["caption"].dropped["words"] == 1


def test_what_stops_one_worker_stops_all_and_is_said(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DanqingError, match="tpu: --device tpu: neither cpu"):
        score_inputs(crawl, tmp_path / "out", plain_recipe, Settings(devices=("cpu", "tpu")))
    command = ["score", *crawl, "-o", str(tmp_path / "other"), "--recipe", str(tmp_path / "plain.yaml")]
    assert main([*command, "--devices", "cpu,cpu", "--profile"]) == 2
    assert "one device at a time" in capsys.readouterr().err


def test_ctrl_c_ends_all_workers(make_shard: Any, plain_recipe: Recipe, tmp_path: Path) -> None:
    shard = make_shard(samples(0, 40))
    paths = [tmp_path / f"copy{number:03d}.tar" for number in range(400)]
    for path in paths:
        os.link(shard, path)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "engine.cli", "score", *map(str, paths), "-o", str(out)]
    command += ["--recipe", str(tmp_path / "plain.yaml"), "--devices", "cpu,cpu"]
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heeds)
    deadline = time.monotonic() + 120
    while len(list(out.glob("scores/*.parquet"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - pressed < 4 and process.returncode == 130
    assert b"the same command goes on from there" in said and b"Traceback" not in said
    finished = sorted(out.glob("scores/*.parquet"))
    assert 0 < len(finished) < len(paths) and all(pq.read_metadata(path).num_rows == 40 for path in finished)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    assert not children.stdout.strip()
