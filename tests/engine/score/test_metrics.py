"""The metrics that a run serves to Prometheus."""

from __future__ import annotations

import os
import re
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import danqing.engine.score.loop
from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.spans import Span, Spans
from danqing.engine.phases import score_inputs
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from danqing.engine.score.metrics import serve_metrics
from tests.engine.score.test_run import crawl

__all__ = ["crawl"]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_metrics_are_served_during_a_run(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_some, go_on = threading.Event(), threading.Event()
    read = danqing.engine.score.loop.read

    def slowly(*given: Any) -> Any:
        for number, batch in enumerate(read(*given)):
            if number == 2:
                read_some.set()
                assert go_on.wait(30)
            yield batch

    monkeypatch.setattr(danqing.engine.score.loop, "read", slowly)
    settings = Settings(metrics_port=port)
    run = threading.Thread(target=score_inputs, args=(crawl, tmp_path / "out", plain_recipe, settings))
    run.start()
    assert read_some.wait(60)
    seen = scrape(port)
    assert seen['danqing_pairs_total{stage="read"}'] == 14 and 'danqing_queue_batches{stage="read"}' in seen
    assert seen["process_resident_memory_bytes"] > 50e6
    go_on.set()
    run.join()
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def test_metrics_equal_the_spans(port: int) -> None:
    spans = Spans()
    spans["decode"] = Span(
        rows=9, passed=6, failed=1, seconds=1.5, starved_seconds=0.5, blocked_seconds=0.25, up=7, waiting=lambda: 1
    )
    spans["decode"].dropped.update(flat=2)
    with serve_metrics(spans, port, "127.0.0.1"):
        seen = scrape(port)
        spans["decode"].rows = 10
        assert scrape(port)['danqing_pairs_total{stage="decode"}'] == 10
    ours = {name: value for name, value in seen.items() if name.startswith("danqing_")}
    assert ours == {
        'danqing_pairs_total{stage="decode"}': 9,
        'danqing_passed_total{stage="decode"}': 6,
        'danqing_errors_total{stage="decode"}': 1,
        'danqing_dropped_total{criterion="flat"}': 2,
        'danqing_stage_seconds_total{stage="decode",state="work"}': 1.5,
        'danqing_stage_seconds_total{stage="decode",state="starved"}': 0.5,
        'danqing_stage_seconds_total{stage="decode",state="blocked"}': 0.25,
        'danqing_copied_bytes_total{direction="up",stage="decode"}': 7,
        'danqing_copied_bytes_total{direction="down",stage="decode"}': 0,
        'danqing_queue_batches{stage="decode"}': 1,
    }


def test_drops_and_errors_are_counted_by_criterion(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    _, spans = score_inputs(crawl, tmp_path / "out", plain_recipe, Settings())
    dropped = {name: rows for span in spans.values() for name, rows in span.dropped.items() if rows}
    assert dropped == {"words": 1, "downloaded": 1, "aspect_ratio": 1}
    assert {name: span.failed for name, span in spans.items() if span.failed} == {"header": 1, "decode": 1}


def test_the_default_address_is_local(port: int) -> None:
    def listening() -> str:
        """Addresses that listen at the port, in the notation of /proc/net."""
        tables = (Path(f"/proc/{os.getpid()}/net/{name}").read_text() for name in ("tcp", "tcp6"))
        return " ".join(re.findall(rf" ([0-9A-F]+):{port:04X} [0-9A-F:]+ 0A ", "".join(tables)))

    with serve_metrics(Spans(), port, Settings().metrics_address):
        assert listening() == "0100007F"  # 127.0.0.1
    with serve_metrics(Spans(), port, "0.0.0.0"):
        assert listening() == "00000000"
    with serve_metrics(Spans(), None, "127.0.0.1"):
        assert not listening()


def test_a_port_in_use_is_an_error_before_scoring(
    crawl: list[str], tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(DanqingError, match=f"--metrics-port {port}"), serve_metrics(Spans(), port, "127.0.0.1"):
            pass
        command = ["score", *crawl, "-o", str(tmp_path / "out"), "--recipe", str(tmp_path / "plain.yaml")]
        (tmp_path / "plain.yaml").write_text("recipe: plain\ncriteria:\n  readable: {min: 1}\n")
        assert main([*command, "--metrics-port", str(port)]) == 2
        assert f"--metrics-port {port}: cannot serve at 127.0.0.1" in capsys.readouterr().err
