"""Kills `danqing curate` at random times, with the networks of the recipe `embedded`, and runs it again until it ends.

    pytest -s tests/slow/kills.py        KILLS (100) and KILLS_SEED choose how often and when

Workers end with the killed process, and the outputs are those of a run that was left alone.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from danqing.engine.demo.crawl import build_crawl
from tests.engine.kill_points import tree

KILLS, SEED = int(os.environ.get("KILLS", 100)), int(os.environ.get("KILLS_SEED", 0))


def test_a_run_that_is_killed_at_random_times_has_the_same_bytes(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    shards = list(map(str, build_crawl(tmp_path / "crawl")))

    def start(out: Path) -> subprocess.Popen[bytes]:
        options = ["--devices", "cpu,cpu"] if chance.random() < 0.5 else []
        command = [sys.executable, "-m", "danqing.engine.cli.main", "curate", *shards, "-o", str(out), *options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    started = time.monotonic()
    whole = start(tmp_path / "whole" / "run")
    assert whole.wait() == 0
    seconds, expected = time.monotonic() - started, tree(tmp_path / "whole" / "run")
    killed = finished = 0
    while killed < KILLS:
        out = tmp_path / f"out{finished}" / "run"
        while not _ends(start(out), chance.uniform(0, seconds)):
            killed += 1
            print(f"killed {killed}, finished {finished}", flush=True)
        finished += 1
        assert tree(out) == expected and not list(out.rglob(".*"))


def _ends(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kills a process and waits for its workers; returns whether it had ended with success before."""
    try:
        assert process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive
        return False
    return True
