"""The lock of an output folder, and what killed processes leave in it."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import LOCK, building
from danqing.engine.core.local_copies import ABANDONED_SECONDS
from danqing.engine.core.lock import locked
from danqing.engine.phases import curate
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.lock import lock_folder
from danqing.engine.run.settings import Settings
from tests.conftest import started
from tests.engine.score.test_run import crawl, tree

__all__ = ["crawl"]

HOLD = """
import sys
from pathlib import Path
from danqing.engine.core.files import LOCK
from danqing.engine.core.lock import locked
with locked(Path(sys.argv[1]) / LOCK):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `tmp_path/out`."""
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-c", HOLD, str(out)]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process


def test_a_folder_has_one_writer(
    holder: subprocess.Popen[str], crawl: list[str], plain_recipe: Recipe, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    recipe = ["--recipe", str(tmp_path / "plain.yaml")]
    for command in (["curate", *crawl, "-o", str(out), *recipe], ["merge", str(out), "-o", str(out)]):
        assert main(command) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith(f"danqing: {out}: in use by process {holder.pid} on ")
        assert "-c" in message and message.endswith("wait until it ends, stop it, or choose another folder")
    holder.kill()
    holder.wait()
    curate(crawl, out, plain_recipe, Settings())  # the kernel has released the lock
    assert not list(out.rglob(LOCK))
    before = tree(out)
    curate(crawl, out, plain_recipe, Settings())
    assert tree(out) == before


def test_threads_exclude_each_other_and_nested_phases_do_not(tmp_path: Path) -> None:
    refused: list[Exception] = []

    def enter() -> None:
        try:
            with lock_folder(tmp_path / "out"):
                pass
        except DanqingError as problem:
            refused.append(problem)

    with lock_folder(tmp_path / "out") as outer, lock_folder(tmp_path / "out") as inner:
        assert outer and not inner
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(60)
        assert len(refused) == 1
    assert not (tmp_path / "out").exists()  # nothing was written to it


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    part = f".00000.parquet.{uuid.uuid4().hex}.part"
    out = tmp_path / "out"
    left = [out / part, out / "scores" / part]
    kept = [out / "scores" / ".mine.part", out / "references" / "x" / part, tmp_path / part]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    with lock_folder(out):
        assert not any(path.exists() for path in left) and all(path.exists() for path in kept)


def test_what_killed_processes_left_in_the_cache_is_removed_after_a_day(tmp_path: Path) -> None:
    old = [
        tmp_path / ".making-old",
        tmp_path / f".a.{uuid.uuid4().hex}.part",
        tmp_path / "x" / f".a.{uuid.uuid4().hex}.part",
    ]
    new = [path.with_name(path.name.replace("old", "new").replace(".a.", ".b.")) for path in old]
    for path in (*old, *new):
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if ".making" in path.name else path.write_text("")
    for path in old:
        os.utime(path, (0, time.time() - ABANDONED_SECONDS))
    with building(tmp_path / "model", "the model"):
        assert not any(path.exists() for path in old) and all(path.exists() for path in new)


def test_a_start_that_was_killed_leaves_a_folder_that_can_be_used(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / f".run.json.{uuid.uuid4().hex}.part").write_text("{")
    (out / LOCK).write_text("")
    curate(crawl, out, plain_recipe, Settings())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    with pytest.raises(DanqingError, match="not empty and not a run"):
        curate(crawl, tmp_path / "mine", plain_recipe, Settings())


def test_a_file_system_without_locks_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    part = tmp_path / f".a.{uuid.uuid4().hex}.part"
    part.write_text("")
    with lock_folder(tmp_path), lock_folder(tmp_path):
        assert part.exists()  # it can be another process's
    assert capsys.readouterr().err.count("no locks here; run one command at a time") == 1


def test_a_process_waits_for_another_one_that_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, said = threading.Event(), io.StringIO()
    monkeypatch.setattr(said, "flush", waits.set)
    monkeypatch.setattr(sys, "stderr", said)
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / f".folder{LOCK}"):  # as another process holds it
            second = pool.submit(build, tmp_path / "folder")
            assert waits.wait(60)
        assert second.result(60) and not list(tmp_path.iterdir())
    assert "waits for the model, which process" in said.getvalue()


def test_threads_of_a_process_build_one_after_the_other_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with building(tmp_path / "folder", "the model"):
            second = pool.submit(build, tmp_path / "folder")
            with pytest.raises(TimeoutError):
                second.result(0.1)
        assert second.result(60)
    assert not capsys.readouterr().err


def build(folder: Path) -> bool:
    with building(folder, "the model") as waited:
        return waited


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "'recipe' is missing"),
        ([], "is not a JSON object"),
        ({"recipe": []}, "'recipe' is not an object"),
        ({"recipe": {}, "recipe_hash": "", "layout": {}, "shards": [1], "models": {}, "versions": {}}, "'shards'"),
        ({"recipe": {}, "recipe_hash": "", "layout": {"x": 1}, "shards": [], "models": {}, "versions": {}}, "'layout'"),
    ],
)
def test_a_run_json_of_something_else_is_one_line(content: Any, words: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "run.json").write_text(json.dumps(content))
    for command in (["decide", str(tmp_path)], ["write", str(tmp_path)], ["explain", str(tmp_path), "key"]):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"danqing: {tmp_path / 'run.json'}: ") and words in message
        assert "score again into another folder" in message and message.count("\n") == 1
