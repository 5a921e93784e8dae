"""Claims: processes without numbers that divide the shards of a run."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from danqing.engine import phases
from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import LOCK, write_json
from danqing.engine.core.lock import Holder
from danqing.engine.phases import curate, decide_run
from danqing.engine.recipe.reading import Recipe
from danqing.engine.report.html import write_report
from danqing.engine.report.terminal import ProgressBar
from danqing.engine.run import claims
from danqing.engine.run.claims import AnyPart, Claims, forget_claims, read_share
from danqing.engine.run.folder import Run
from danqing.engine.run.lock import CLAIMS, lock_folder
from danqing.engine.run.part import TaskPart
from danqing.engine.run.settings import Settings
from danqing.engine.write.output import WriteOptions
from danqing.engine.write.products import STALE
from tests.conftest import started
from tests.engine.score.test_run import samples, tree


@dataclass(frozen=True)
class Item:
    number: int


class Work:
    """Shards that threads do, each as if it were a process.

    Attributes:
        output: folder of the claims.
        seconds: time that a shard takes.
        done, doing: shards that are finished, and those that a thread works on.
        times: number of times that each shard was finished.
        said: lines that were shown.
    """

    def __init__(self, output: Path, count: int, seconds: float = 0.0) -> None:
        self.output, self.seconds = output, seconds
        self.items = [Item(number) for number in range(count)]
        self.done, self.times, self.doing = set[Item](), Counter[Item](), set[Item]()
        self.said: list[str] = []

    def claims(self, part: AnyPart) -> Claims[Item]:
        return Claims(self.output, "scores", part, self.unfinished, self.done.__contains__, self.said.append)

    def unfinished(self) -> list[Item]:
        return [item for item in self.items if item not in self.done]

    def run(self, part: AnyPart | None = None) -> int:
        """Does shards until all are done; returns their number. Takes one before the last one ends, as SCORE does."""
        part, own = part or AnyPart(), 0
        with lock_folder(self.output, part):
            for claimed in self.claims(part).rounds():
                before: Item | None = None
                for item in claimed:
                    assert item not in self.doing
                    self.doing.add(item)
                    self._finish(before)
                    before, own = item, own + 1
                    time.sleep(self.seconds)
                self._finish(before)
        return own

    def _finish(self, item: Item | None) -> None:
        if item:
            self.doing.remove(item)
            self.done.add(item)
            self.times[item] += 1


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.01)


def products(folder: Path) -> dict[str, bytes]:
    texts = ("README.md", "shards/sizes.json", "funnel.json")
    return tree(folder) | {name: (folder / name).read_bytes() for name in texts}


def claim(output: Path, number: int, process: str) -> None:
    write_json(output / CLAIMS / "scores" / f"{number:05d}.{process}", {})


def test_values_of_part() -> None:
    assert read_share("") is None and read_share("1/3") == TaskPart(1, 3)
    assert isinstance(read_share("any"), AnyPart) and AnyPart() != AnyPart()
    with pytest.raises(DanqingError, match=r"write I/N .*, or any"):
        read_share("all")


def test_processes_divide_the_shards(tmp_path: Path) -> None:
    work = Work(tmp_path, 60, seconds=0.002)
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda _: work.run(), range(4)))
    assert sum(counts) == 60 and set(work.times.values()) == {1}
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]  # no claim is left


def test_shards_of_killed_processes_are_claimed_by_others(tmp_path: Path) -> None:
    work = Work(tmp_path, 4)
    claim(tmp_path, 2, "host.with.dots-1-abc")
    running = AnyPart()
    with ExitStack() as stack:
        stack.enter_context(lock_folder(tmp_path, running))
        claim(tmp_path, 3, running.process)
        thread = threading.Thread(target=work.run)
        thread.start()
        while not work.said:
            time.sleep(0.01)
        assert work.done == {*work.items[:3]} and work.said == ["waits for 1 shards that other processes have claimed"]
    thread.join(60)  # `running` has ended without doing its shard
    assert work.done == {*work.items} and len(work.said) == 1


def test_a_process_that_waits_writes_no_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, running = Work(tmp_path, 1), AnyPart()
    with lock_folder(tmp_path, running):
        claim(tmp_path, 0, running.process)
        monkeypatch.setattr(claims, "write_json", None)
        assert not work.claims(AnyPart())._claim(work.items[0], set())


def test_processes_that_end_are_not_counted_as_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(tmp_path, 1)
    for process in "abc":
        claim(tmp_path, 0, process)

    def end(output: Path, claim: Path) -> bool:  # after the claims were listed
        claim.unlink(missing_ok=True)
        return False

    monkeypatch.setattr(claims, "_is_running", end)
    given_up = set[int]()
    assert work.claims(AnyPart())._claim(work.items[0], given_up) and not given_up


def test_claims_are_forgotten_if_no_process_that_made_one_is_running(tmp_path: Path) -> None:
    running = AnyPart()
    claim(tmp_path, 0, "killed")
    claim(tmp_path, 1, running.process)
    with lock_folder(tmp_path, running):
        forget_claims(tmp_path)
        assert len([*tmp_path.glob(f"{CLAIMS}/scores/*")]) == 2
    with lock_folder(tmp_path, AnyPart()):  # it runs, but has no claims
        forget_claims(tmp_path)
    assert not [*tmp_path.glob(f"{CLAIMS}/scores/*")]


def test_a_shard_at_which_processes_are_killed_is_given_up(tmp_path: Path) -> None:
    work = Work(tmp_path, 5)
    for process in "abc":
        claim(tmp_path, 1, process)
    with pytest.raises(DanqingError, match="3 processes were killed that had claimed these shards: 00001; run"):
        work.run()
    assert work.done == {*work.items} - {work.items[1]}


def test_a_process_that_fails_withdraws_its_claims(tmp_path: Path) -> None:
    work, part = Work(tmp_path, 3), AnyPart()
    with lock_folder(tmp_path, part):
        rounds = work.claims(part).rounds()
        next(next(rounds))
        assert len([*(tmp_path / CLAIMS / "scores").iterdir()]) == 1
        rounds.close()
        assert not (tmp_path / CLAIMS).exists()


def test_claims_need_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DanqingError, match="no locks here, which --part any needs; give each process --part I/N"):
        Work(tmp_path, 1).run()


def test_processes_make_what_one_process_makes_if_one_is_killed(
    make_shard: Any,
    plain_recipe: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(ProgressBar, "say", lambda progress, line: said.append(line))
    inputs = [str(make_shard(samples(10 * number, 6), f"{number:05d}.tar")) for number in range(4)]
    curate(inputs, tmp_path / "one", plain_recipe, Settings(), WriteOptions(shard_size=4))
    out = tmp_path / "out"
    score = ["score", *inputs, "-o", str(out), "--recipe", str(tmp_path / "plain.yaml"), "--part", "any"]
    with started([sys.executable, "-m", "danqing.engine.cli.main", *score]) as killed, ThreadPoolExecutor(1) as pool:
        while not [*out.glob(f"{CLAIMS}/scores/0*")]:
            assert killed.poll() is None
            time.sleep(0.02)
        killed.send_signal(signal.SIGSTOP)  # it holds its claims
        (out / LOCK).write_text(json.dumps(vars(Holder(pid=2**22))))  # the last to take it has ended
        assert main(["decide", str(out)]) == 2 and f"in use by process {killed.pid} on " in capsys.readouterr().err
        other = pool.submit(main, score)
        while not any("waits for" in line for line in said):
            assert not other.done(), said
            time.sleep(0.1)
        killed.kill()
        assert other.result(120) == 0
    with monkeypatch.context() as patch:
        patch.setattr(phases, "_finish_scoring", None)  # another process has done it
        assert main(score) == 0
    assert Run.open(out).manifest["counts"] == {"scored_shards": 4}
    assert main(["decide", str(out)]) == 0
    assert not list(out.glob(f"{LOCK}*")) and not (out / CLAIMS).exists()
    write = ["write", str(out), "--shard-size", "4", "--part", "any"]
    reports: list[Run] = []
    with ThreadPoolExecutor(2) as pool, monkeypatch.context() as patch:
        patch.setattr(phases, "write_report", lambda run, verdicts: (write_report(run, verdicts), reports.append(run)))
        assert list(pool.map(main, [write, write])) == [0, 0]
    assert len(reports) == 1
    assert products(tmp_path / "one") == products(out) and (out / "report.html").exists()
    assert not (out / CLAIMS).exists()
    assert main([*write, "--shuffle", "1"]) == 2 and main([*write, "--ray", "local"]) == 2
    assert "--part any and --ray local: both divide the shards" in capsys.readouterr().err


def test_processes_write_other_verdicts_and_then_the_first_ones_again(
    make_shard: Any, plain_recipe: Recipe, tmp_path: Path
) -> None:
    rows = samples(0, 10) | {f"{number:05d}.txt": "小猫" for number in range(3)}
    out, one = tmp_path / "out", tmp_path / "one"
    curate([str(make_shard(rows))], out, plain_recipe, Settings(score_everything=True), WriteOptions(shard_size=4))
    first, write = products(out), ["write", "--shard-size", "4"]
    assert main(["decide", str(out), "--set", "words.min=1"]) == 0
    shutil.copytree(out, one)
    assert main([*write, str(one)]) == 0 and products(one) != first
    for expected in (products(one), first):
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(main, [[*write, str(out), "--part", "any"]] * 3)) == [0, 0, 0]
        assert products(out) == expected and not (out / STALE).exists() and "written" in Run.open(out).manifest
        decide_run(Run.open(out), plain_recipe)
