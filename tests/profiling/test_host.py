"""The benchmark of the interpreter's lock: it runs, and books every second once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from danqing.profiling.bench.host import BETWEEN, Meter, main
from tests.engine.score.test_run import samples


def test_seconds_are_booked_on_the_innermost_name(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "process_time", lambda: now)
    meter = Meter()
    read = meter.releasing(work)
    with meter("stage"):
        work(1)
        meter.named("part", work)(2)
        meter.releasing(lambda: (work(3), read(4)))()
        work(5)
    assert meter.held == {"stage": 6, "part": 2, BETWEEN: 0}
    assert meter.released == {"stage": 7}


def test_the_benchmark_prints_and_writes_its_figures(
    make_shard: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard, written = make_shard(samples(0, 12)), tmp_path / "host.json"
    assert main(["--data", str(shard), "--rounds", "1", "--json", str(written)]) == 0
    found = json.loads(written.read_text())
    stages = {"tar index", "read", "header", "refine", "image embedding", "ledger", "shard files"}
    assert found["pairs"] == 12 and stages <= found["held_us"].keys() == found["peer_held_us"].keys()
    assert found["held_us"]["header"] < found["peer_held_us"]["header"]
    assert found["sum_us"] == pytest.approx(sum(found["held_us"].values()))
    assert found["most_pairs_a_second"] == pytest.approx(1e6 / found["sum_us"])
    table = capsys.readouterr().out
    assert "pairs/s at most" in table and "peer: tarfile, Pillow" in table
    assert main(["--data", str(tmp_path / "nothing.tar")]) == 2
