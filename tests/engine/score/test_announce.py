"""The files in which Prometheus and the health check find workers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.spans import Spans
from danqing.engine.score.announce import announce_worker, silent_workers
from danqing.engine.score.health import main as health
from danqing.engine.score.metrics import serve_metrics
from danqing.trt_models.package_files import cache_folder

HOST = socket.gethostname()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DANQING_CACHE", str(tmp_path))
    return tmp_path / "metrics"


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A port that is reserved for the test, without a listener."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held


@pytest.fixture
def port(taken: socket.socket) -> int:
    return int(taken.getsockname()[1])


def test_a_worker_has_a_file_while_it_serves_metrics(folder: Path) -> None:
    with serve_metrics(Spans(), 0, "127.0.0.1"), serve_metrics(Spans(), 0, "127.0.0.1"):
        found = [json.loads(path.read_text()) for path in sorted(folder.iterdir())]
        assert [group["labels"] for (group,) in found] == [{"device": "cpu"}] * 2
        assert len({group["targets"][0] for (group,) in found}) == 2
        assert health() == 0
    assert not list(folder.iterdir())
    assert health() == 0  # no worker to query


@pytest.mark.parametrize(
    ("address", "target"),
    [("0.0.0.0", f"{HOST}:9100"), ("::", f"{HOST}:9100"), ("10.1.2.3", "10.1.2.3:9100"), ("::1", "[::1]:9100")],
)
def test_the_file_has_an_address_that_others_can_reach(address: str, target: str, tmp_path: Path) -> None:
    with announce_worker(tmp_path, address, 9100, "cuda:3"):
        (group,) = json.loads((tmp_path / f"{HOST}-9100.json").read_text())
    assert group == {"targets": [target], "labels": {"device": "cuda:3"}}


def test_a_worker_that_was_killed_is_unhealthy_until_the_next_one_starts(
    folder: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = f"""if True:
        import os
        from pathlib import Path
        from danqing.engine.score.announce import announce_worker
        with announce_worker(Path({str(folder)!r}), "127.0.0.1", {port}, "cpu"):
            os._exit(1)
    """
    subprocess.run([sys.executable, "-c", killed], check=False, timeout=240)
    other = folder / "another-host-9100.json"
    other.write_text('[{"targets": ["another-host:9100"]}]')  # of another host, so it is not checked
    assert silent_workers(folder) == [f"127.0.0.1:{port}"]
    assert health() == 1 and f"127.0.0.1:{port}" in capsys.readouterr().out
    with serve_metrics(Spans(), 0, "127.0.0.1"):
        assert not (folder / f"{HOST}-{port}.json").exists() and other.exists()
        assert health() == 0


def test_a_worker_that_is_busy_keeps_its_file(folder: Path, taken: socket.socket, port: int) -> None:
    taken.listen()  # accepts connections but does not answer
    with announce_worker(folder, "127.0.0.1", port, "cpu"), serve_metrics(Spans(), 0, "127.0.0.1"):
        assert len(list(folder.glob("*.json"))) == 2


def test_damaged_files_are_removed(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    damaged = [folder / f"{socket.gethostname()}-{port}.json" for port in range(7, 12)]
    for path, content in zip(damaged, ("", "[", "[5]", '[{"targets": [5]}]', "{}"), strict=True):
        path.write_text(content)
    assert silent_workers(folder) == []
    with serve_metrics(Spans(), 0, "127.0.0.1"):
        assert not any(path.exists() for path in damaged)


def test_a_folder_that_cannot_be_written_is_an_error(folder: Path) -> None:
    cache_folder()
    folder.write_text("a file")
    with pytest.raises(DanqingError, match="Prometheus finds this worker by"), serve_metrics(Spans(), 0, "127.0.0.1"):
        pass
