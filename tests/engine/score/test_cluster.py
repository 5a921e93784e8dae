"""Scoring and writing on a Ray cluster: several nodes on this machine, of which one is killed."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
import socket
import sys
import time
import types
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
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
from danqing.engine.decide.cluster import RaySearch
from danqing.engine.phases import curate, decide_run
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.cluster import Job, Worker, WorkerSpec, connected, resources_of, run_on_cluster
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings, settings_from
from danqing.engine.run.versions import current_versions
from danqing.engine.run.work import Names, Tally
from danqing.engine.score.cluster import ShardScorer
from danqing.engine.sources import Shard
from danqing.engine.write.output import WriteOptions
from tests.engine.decide.runs import make_run, on_circle
from tests.engine.decide.test_verdicts import columns, recipe_of
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


@pytest.fixture(autouse=True)
def own_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the handlers of workers that lived in this process."""
    monkeypatch.setattr(log, "handlers", log.handlers.copy())


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


@pytest.fixture
def searched_run(tmp_path: Path) -> tuple[Recipe, Run]:
    """A run with near rows, and a recipe that searches for them."""
    criteria = "{redundancy: {within: 0.02, keep: first}}"
    recipe = recipe_of(
        tmp_path, f"recipe: r\nmodels: {{image_embedding: efficientnet-lite0-conse}}\ncriteria: {criteria}"
    )
    return recipe, make_run(tmp_path / "searched", recipe, on_circle(*range(0, 90, 5)), columns(18), [10, 8])


def node_of(cluster: Any, pid: int) -> Any:
    parents = {parent.pid for parent in psutil.Process(pid).parents()}
    (node,) = [node for node in cluster.list_all_nodes() if node.all_processes["raylet"][0].process.pid in parents]
    return node


def test_a_killed_worker_and_a_killed_node_change_nothing(
    cluster: Any,
    make_shard: Any,
    plain_recipe: Recipe,
    searched_run: tuple[Recipe, Run],
    tmp_path: Path,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
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
    recipe, searched = searched_run
    plain = Run.open(shutil.copytree(searched.folder, tmp_path / "plain"))
    decide_run(plain, recipe, progress=silent)
    with connected(cluster.address):
        try:
            settings = Settings(ray=cluster.address, metrics_port=port)
            run, _, spans = curate(shards, tmp_path / "two", plain_recipe, settings, options, progress=silent)
        finally:
            log.removeHandler(handler)
        decide_run(searched, recipe, progress=silent, ray=RaySearch(cluster.address, tasks=3))
    verdicts = [[path.read_bytes() for path in sorted((r.folder / "verdicts").iterdir())] for r in (plain, searched)]
    assert verdicts[0] == verdicts[1] and searched.manifest["neighbours"] == {"redundancy": "tasks"}
    for what, at, seen in zip(("worker", "node"), killed, noticed, strict=True):
        print(f"loss of a {what} noticed after {seen - at:.2f} s")
    assert tree(tmp_path / "one") == tree(tmp_path / "two") and len(pids) == 3
    assert spans["read"].rows == 24 and run.manifest["counts"]["scored_shards"] == 8
    lost = re.search(r"^danqing_workers_lost_total (\d+)", metrics, re.MULTILINE)
    assert lost and int(lost[1]) >= 2  # more if the node had a worker that was starting
    assert 'danqing_worker_pairs_total{worker="0 on ' in metrics
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
            return types.SimpleNamespace(remote=lambda *given: StubHandle(method=method, given=given))

        def start(*given: Any) -> Any:
            made = kind(*given)
            return StubHandle(start=call(made.start), do=call(made.do))

        return types.SimpleNamespace(options=lambda **_: types.SimpleNamespace(remote=start))

    def wait(self, results: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return results[:1], results[1:]

    def get(self, result: Any) -> Any:
        try:
            return result.method(*result.given)
        except (DanqingError, OSError) as problem:
            raise self.RayTaskError(problem) from None


class StubHandle(types.SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


class StubWorker(Worker):
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


def job(
    items: list[str], needs: dict[str, float], address: str = "auto", starts: bool = True
) -> tuple[Job[str], list[str]]:
    """A job of a stub, and the list that receives its results."""
    done: list[str] = []

    def finished(item: str, made: str) -> int:
        done.append(made)
        return 10

    spec = WorkerSpec(StubWorker, (starts,), needs)
    return Job(address, spec, items, finished, lambda lost: f"shards: {', '.join(lost)}"), done


def test_a_shard_that_ends_its_workers_is_given_up() -> None:
    work, done = job(["a", "poison", "b", "c"], {"CPU": 2, "GPU": 0.5})
    assert work.spec.fitting(NODES) == 2
    said, tally = list[str](), Tally()
    with pytest.raises(DanqingError, match=r"^3 workers died at each of these shards: poison$"):
        run_on_cluster(StubRay(NODES), work, types.SimpleNamespace(say=said.append), tally)
    assert said[0].endswith(" on here is lost, its shard waits again: killed at once")
    assert said[2].endswith(" is lost, its shard is given up, at which 3 workers died: killed at once")
    assert sorted(done) == ["A", "B", "C"] and tally.lost == 3
    assert sum(worker.pairs for worker in tally.workers.values()) == 30


def test_the_driver_names_what_a_worker_held(caplog: pytest.LogCaptureFixture) -> None:
    log.setLevel(logging.INFO)
    work, said = replace(job(["a", "poison"], {"CPU": 5})[0], names=Names("task", "comparisons")), list[str]()
    with pytest.raises(DanqingError, match="3 workers died"):
        run_on_cluster(StubRay(NODES), work, types.SimpleNamespace(say=said.append))
    assert [line.partition(", ")[2].partition(":")[0] for line in said] == [
        "its task waits again", "its task waits again", "its task is given up, at which 3 workers died"
    ]  # fmt: skip
    ended = [record for record in caplog.records if getattr(record, "event_name", "") == "danqing.worker.ended"]
    assert "worker 0 on here: 1 tasks, 10 comparisons, " in ended[0].getMessage()
    assert ended[0].attributes["danqing.comparisons"] == 10  # type: ignore[attr-defined]


def test_an_error_of_a_worker_ends_the_run() -> None:
    for item, words in (("wrong", "b[.]tar: no such file"), ("full", "00000.parquet: No space.*; free space there")):
        with pytest.raises(DanqingError, match=f"worker 0 on here: .*{words}"):
            run_on_cluster(StubRay(NODES), job([item], {"CPU": 5})[0], Silent())


def test_a_worker_with_other_versions_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {**current_versions(), "jieba": "0.1"}
    monkeypatch.setattr(danqing.engine.run.cluster, "current_versions", iter([versions, current_versions()]).__next__)
    with pytest.raises(DanqingError, match=r"at its start: .* has other versions than the driver: jieba .*, not 0[.]1"):
        run_on_cluster(StubRay(NODES), job(["a"], {"CPU": 5})[0], Silent())


def test_workers_that_do_not_start_end_the_run() -> None:
    with pytest.raises(DanqingError, match="3 workers in a row died while they started: no room"):
        run_on_cluster(StubRay(NODES), job(["a"], {"CPU": 1}, starts=False)[0], Silent())


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
    said = list[str]()
    work, done = job(["a"], {"CPU": 1}, "head:6379")
    listener = types.SimpleNamespace(say=said.append)
    run_on_cluster(EmptyRay(), work, listener)
    assert done == ["A"] and said == [
        "--ray head:6379: waits for a node, no node of the cluster is alive; see `ray status`"
    ]
    with pytest.raises(DanqingError, match="--ray local: the cluster on this machine has ended"):
        run_on_cluster(EmptyRay(), job(["a"], {"CPU": 1}, "local")[0], listener)


def test_a_worker_gets_a_gpu_and_its_share_of_the_cores() -> None:
    assert resources_of("cuda", None, 1, NODES) == {"GPU": 1, "CPU": 2}
    assert resources_of("cuda", None, 2, NODES) == {"GPU": 0.5, "CPU": 1}
    assert resources_of("cpu", 3, 1, NODES) == {"CPU": 3}
    assert settings_from({"ray": "auto", "device": "cuda", "workers_per_gpu": 2}).devices == ()
    with pytest.raises(DanqingError, match="leave --devices out"):
        settings_from({"ray": "auto", "devices": "0,1"})
