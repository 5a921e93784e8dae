"""Scoring and writing on a Ray cluster: several nodes on this machine, of which one is killed."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import time
import types
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

import danqing.engine.run.cluster
import danqing.engine.score.cluster
from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.logs import log
from danqing.engine.core.progress import Silent, silent
from danqing.engine.phases import curate
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.cluster import WorkerSpec, connected, run_on_cluster
from danqing.engine.run.settings import Settings, settings_from
from danqing.engine.run.work import Tally, WorkQueue
from danqing.engine.score.cluster import ShardScorer, resources_of
from danqing.engine.sources import Shard
from danqing.engine.write.output import WriteOptions
from tests.engine.score.test_metrics import port
from tests.engine.score.test_run import samples, tree

__all__ = ["port"]

LIMIT_SECONDS = 300
"""After this time the test fails; on a quiet machine it takes a tenth."""
GATE = "DANQING_TEST_GATE"
"""Names a file; the shards from `GATED` on are scored when it is there."""
GATED = 2
STORE_BYTES = 80 << 20


class GatedScorer(ShardScorer):
    """A worker that tells its process id, and holds its shard until the gate is open."""

    def open(self) -> str:
        return f"{super().open()} {os.getpid()}"

    def work(self, shard: Shard) -> Any:
        while shard.number >= GATED and not Path(os.environ[GATE]).exists():
            time.sleep(0.02)
        return super().work(shard)


class Events(logging.Handler):
    """Calls a function with the name and the attributes of every event that is logged."""

    def __init__(self, listen: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__()
        self.listen = listen

    def emit(self, record: logging.LogRecord) -> None:
        if name := getattr(record, "event_name", None):
            self.listen(name, record.attributes)  # type: ignore[attr-defined]


@pytest.fixture
def limit() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"not finished after {LIMIT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def cluster(limit: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster whose head does no work; nodes are added by the test.

    A killed node is noticed when it refuses three connections; one that is only slow has six seconds.
    """
    for name, value in {"period_ms": 500, "timeout_ms": 2000, "initial_delay_ms": 500, "failure_threshold": 3}.items():
        monkeypatch.setenv(f"RAY_health_check_{name}", str(value))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv(GATE, str(tmp_path / "gate"))
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "num_gpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def node_of(cluster: Any, pid: int) -> Any:
    parents = {parent.pid for parent in psutil.Process(pid).parents()}
    (node,) = [node for node in cluster.list_all_nodes() if node.all_processes["raylet"][0].process.pid in parents]
    return node


def test_a_killed_worker_and_a_killed_node_change_nothing(
    cluster: Any, make_shard: Any, plain_recipe: Recipe, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [str(make_shard(samples(10 * number, 3), f"{number:05d}.tar")) for number in range(8)]
    options = WriteOptions(shard_size=5)
    curate(shards, tmp_path / "one", plain_recipe, Settings(), options, progress=silent)
    pids: list[int] = []
    killed: list[float] = []
    noticed: list[float] = []
    metrics = ""

    def listen(name: str, attributes: dict[str, Any]) -> None:
        nonlocal metrics
        if name == "danqing.worker.ready" and "cpu" in attributes["danqing.worker"]:
            pids.append(int(attributes["danqing.worker"].split()[-1]))
            if len(pids) == 1:
                node()  # joins while the first worker scores
            if len(pids) == 2:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(time.monotonic())
        if name == "danqing.worker.lost":
            noticed.append(time.monotonic())
            if len(noticed) == 1:
                lost = node_of(cluster, pids[1])
                killed.append(time.monotonic())
                cluster.remove_node(lost, allow_graceful=False)
            else:
                (tmp_path / "gate").touch()
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                    metrics = page.read().decode()

    def node() -> None:
        cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE_BYTES)

    node()
    monkeypatch.setattr(danqing.engine.score.cluster, "ShardScorer", GatedScorer)
    monkeypatch.setattr(danqing.engine.score.cluster, "resources_of", lambda *_: {"GPU": 1, "CPU": 1})
    handler = Events(listen)
    log.addHandler(handler)
    try:
        settings = Settings(ray=cluster.address, metrics_port=port)
        run, _, spans = curate(shards, tmp_path / "two", plain_recipe, settings, options, progress=silent)
    finally:
        log.removeHandler(handler)
    for what, at, seen in zip(("worker", "node"), killed, noticed, strict=True):
        print(f"loss of a {what} noticed after {seen - at:.2f} s")
    assert tree(tmp_path / "one") == tree(tmp_path / "two") and len(pids) == 3
    assert spans["read"].rows == 24 and run.manifest["counts"]["scored_shards"] == 8
    assert "danqing_workers_lost_total 2.0" in metrics and 'danqing_worker_pairs_total{worker="0 on ' in metrics
    written = (run.folder / "run.log").read_text()
    assert written.count(" scored ") == 8 and written.count("is lost") == 2 and "pairs/s" in written
    assert " wrote 00000: 5 pairs (worker 0 on " in written


def test_without_ray_nothing_is_started(
    make_shard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    shard = str(make_shard(samples(0, 1)))
    for command in ("score", "curate"):
        assert main([command, shard, "-o", str(tmp_path / "out"), "--ray", "auto"]) == 2
        assert "--ray needs Ray on every node: pip install 'danqing-engine[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_address_at_which_nothing_listens_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: False))
    with socket.socket() as bound:  # a port that nobody else can take, and that does not listen
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        for given in (address, f"ray://{address}"):
            with pytest.raises(DanqingError, match=f"--ray {given}: no cluster: .*Connection refused.*ray start"):
                connected(given).__enter__()
    with pytest.raises(DanqingError, match="99999: no cluster"):
        connected("127.0.0.1:99999").__enter__()


class StubRay(types.SimpleNamespace):
    """A cluster in this process: results are there at once, and workers die when they raise `DeathError`."""

    class RayError(Exception):
        pass

    class RayTaskError(RayError):
        def __init__(self, cause: Exception) -> None:
            self.cause = cause

    def __init__(self, nodes: Sequence[dict[str, Any]]) -> None:
        super().__init__(exceptions=self, nodes=lambda: nodes, kill=lambda worker: None)

    def remote(self, kind: type) -> Any:
        def call(method: Callable[..., Any]) -> Any:
            return types.SimpleNamespace(remote=lambda *given: (method, given))

        def start(*given: Any) -> Any:
            made = kind(*given)
            return StubHandle(open=call(made.open), work=call(made.work))

        return types.SimpleNamespace(options=lambda **_: types.SimpleNamespace(remote=start))

    def wait(self, results: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return results[:1], results[1:]

    def get(self, result: Any) -> Any:
        method, given = result
        try:
            return method(*given)
        except (DanqingError, OSError) as problem:
            raise self.RayTaskError(problem) from None


class StubHandle(types.SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


class Worker:
    """Dies at the item "poison", and at its start if told so."""

    def __init__(self, starts: bool = True) -> None:
        self.starts = starts

    def open(self) -> str:
        if not self.starts:
            raise StubRay.RayError("no room")
        return "here"

    def work(self, item: str) -> str:
        if item == "poison":
            raise StubRay.RayError("ended\n\x1b[31mkilled at once\n")
        if item == "wrong":
            raise DanqingError("b.tar: no such file")
        if item == "full":
            raise OSError(errno.ENOSPC, "No space left on device", "out/scores/00000.parquet")
        return item.upper()


NODES = [{"Alive": True, "Resources": {"CPU": 5.0, "GPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 9.0}}]


def test_a_shard_that_ends_its_workers_is_given_up() -> None:
    queue, tally, done = WorkQueue(["a", "poison", "b", "c"]), Tally(), list[str]()
    spec = WorkerSpec(Worker, (), {"CPU": 2, "GPU": 0.5})
    assert spec.fitting(NODES) == 2
    said: list[str] = []
    listener = types.SimpleNamespace(say=said.append)
    run_on_cluster(StubRay(NODES), spec, queue, tally, lambda name, item, made: done.append(made), listener)
    assert said[0].endswith(" on here is lost, its shard waits again: killed at once")
    assert said[2].endswith(" is lost, its shard is given up, at which 3 workers died: killed at once")
    assert sorted(done) == ["A", "B", "C"] and queue.given_up == ["poison"] and tally.lost == 3


def test_an_error_of_a_worker_ends_the_run() -> None:
    spec = WorkerSpec(Worker, (), {"CPU": 5})
    for item, words in (("wrong", "b[.]tar: no such file"), ("full", "00000.parquet: No space.*; free space there")):
        with pytest.raises(DanqingError, match=f"worker 0 on here: .*{words}"):
            run_on_cluster(StubRay(NODES), spec, WorkQueue([item]), Tally(), print, Silent())


def test_workers_that_do_not_start_end_the_run() -> None:
    queue = WorkQueue(["a"])
    with pytest.raises(DanqingError, match="3 workers in a row died while they started: no room"):
        spec = WorkerSpec(Worker, (False,), {"CPU": 1})
        run_on_cluster(StubRay(NODES), spec, queue, Tally(), lambda *_: None, Silent())


class EmptyRay(StubRay):
    """A cluster whose nodes are dead until the driver has waited twice."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = NODES[1:]
        super().__init__(self.found)
        self.nodes, self.waits = lambda: self.found, 0

    def wait(self, results: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        self.waits += 1
        if self.waits == 3:
            self.found = NODES
        return ([], results) if self.waits < 3 else super().wait(results, timeout)


def test_a_driver_waits_for_nodes_that_can_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(danqing.engine.run.cluster, "PATIENCE_SECONDS", -1)
    monkeypatch.setattr(danqing.engine.run.cluster, "WAIT_NOTICE_SECONDS", -1)
    spec, said, done = WorkerSpec(Worker, (), {"CPU": 1}), list[str](), list[str]()
    listener = types.SimpleNamespace(say=said.append)
    given = spec, WorkQueue(["a"]), Tally(), lambda name, item, made: done.append(made), listener
    run_on_cluster(EmptyRay(), *given, "head:6379")
    assert done == ["A"] and said == [
        "--ray head:6379: waits for a node, no node of the cluster is alive; see `ray status`"
    ]
    with pytest.raises(DanqingError, match="--ray local: the cluster on this machine has ended"):
        run_on_cluster(EmptyRay(), *given[:1], WorkQueue(["a"]), *given[2:], "local")


def test_a_worker_gets_a_gpu_and_its_share_of_the_cores() -> None:
    assert resources_of(settings_from({"ray": "auto", "device": "cuda"}), NODES) == {"GPU": 1, "CPU": 2}
    two = settings_from({"ray": "auto", "device": "cuda", "workers_per_gpu": 2})
    assert resources_of(two, NODES) == {"GPU": 0.5, "CPU": 1} and two.devices == ()
    assert resources_of(settings_from({"ray": "auto", "device": "cpu", "threads": 3}), NODES) == {"CPU": 3}
    with pytest.raises(DanqingError, match="leave --devices out"):
        settings_from({"ray": "auto", "devices": "0,1"})
