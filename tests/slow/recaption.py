"""The demo's kept pictures, captioned by `transformers serve` with a tiny random model: killed, resumed, written, read.

pytest -s -o faulthandler_timeout=0 tests/slow/recaption.py

Needs transformers[serving] and datasets. DEMO names a finished demo to copy.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import danqing
from danqing.engine.cli.main import main
from tests.conftest import started
from tests.slow.vlm_model import build

STARTING_SECONDS = 120
DANQING = [sys.executable, "-m", "danqing.engine.cli.main"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server."""
    pytest.importorskip("fastapi")
    folder = tmp_path_factory.mktemp("vlm")
    build(folder / "model")
    serve = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", folder / "model"]
    options = ["--host", "127.0.0.1", "--port", "18098", "--device", "cpu", "--dtype", "float32"]
    with (folder / "log").open("w") as log:
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        with started([*serve, *options], stdout=log, stderr=log, env=environment) as process:
            for _ in range(STARTING_SECONDS):
                try:
                    urllib.request.urlopen("http://127.0.0.1:18098/health", timeout=2).close()
                    break
                except urllib.error.URLError:
                    assert process.poll() is None, (folder / "log").read_text()
                    time.sleep(1)
            yield "http://127.0.0.1:18098/v1"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    if given := os.environ.get("DEMO"):
        shutil.copytree(given, folder)
    else:
        assert main(["demo", "-o", str(folder), "--device", "cpu"]) == 0
    return folder / "run"


def test_a_demo_is_recaptioned_killed_resumed_and_written(demo: Path, server: str) -> None:
    command = [*DANQING, "recaption", str(demo), "--endpoint", server, "--max-tokens", "24", "--concurrency", "4"]
    with subprocess.Popen([*command, "--device", "cpu", "--quiet"]) as process:
        while not list(demo.glob("recaptions/[0-9]*.parquet")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    first = {path: path.read_bytes() for path in demo.glob("recaptions/[0-9]*.parquet")}
    run = danqing.open_run(demo)
    assert first and "verdicts" not in run.manifest["recaptioned"], "it ended before it was killed"
    subprocess.run([*command, "--device", "cpu"], check=True)
    assert {path: path.read_bytes() for path in first} == first
    run = danqing.open_run(demo)
    noted = run.manifest["recaptioned"]
    assert sum(noted["outcomes"].values()) == run.funnel.kept and noted["completion_tokens"] > 0
    print(json.dumps({name: noted[name] for name in ("outcomes", "asked", "asked_tokens", "seconds")}))
    assert "recaption_alignment" in run.recaptions().schema.names
    assert 'id="recaptions"' in (demo / "report.html").read_text(encoding="utf-8")
    subprocess.run([*DANQING, "write", str(demo)], check=True)
    table = pq.read_table(run.table_path(0))
    assert table["recaption"].null_count == len(table) - noted["outcomes"].get("success", 0)


def test_load_dataset_shows_the_column(demo: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for output_format in ("webdataset", "parquet"):
        run = danqing.write(demo, output_format=output_format)
        found = datasets.load_dataset(str(demo), split="train", cache_dir=str(demo.parent / output_format))
        first = found[0]["json"] if output_format == "webdataset" else found[0]
        assert len(found) == run.funnel.kept and "recaption" in first
        assert found[0]["jpg" if output_format == "webdataset" and found[0].get("jpg") else "image"] is not None
