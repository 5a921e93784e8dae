"""The `danqing` command as a process: streams, encodings, signals, disks."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import danqing.engine.cli.main
from danqing.engine.cli.main import StoppedError, main
from danqing.engine.cli.output import print_json
from danqing.engine.core.buckets import ENDPOINT
from danqing.engine.core.cache import cache_path
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit
from danqing.engine.phases import curate
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from tests.engine.score.test_run import crawl, samples

__all__ = ["crawl"]

COMMAND = [sys.executable, "-m", "danqing.engine.cli.main"]


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of bash in which `$D` is the command."""
    variables = os.environ | {"D": " ".join(COMMAND)} | environment
    return subprocess.run(["bash", "-c", line], env=variables, capture_output=True, check=False, timeout=240)


def test_a_closed_pipe_ends_like_other_filters() -> None:
    run = shell("$D --help | true; echo ${PIPESTATUS[0]}; yes | true; echo ${PIPESTATUS[0]}")
    assert run.stdout == b"141\n141\n" and run.stderr == b""


def test_closed_streams_are_no_error() -> None:
    run = shell("$D --help >&-; echo $?; $D --help <&- >&- 2>&-; echo $?; $D --nosuch 2>&-; echo $?")
    assert run.stdout == b"0\n0\n2\n" and run.stderr == b""


def test_a_full_output_is_one_line() -> None:
    run = shell("$D --help >/dev/full; echo $?; $D --nosuch 2>/dev/full; echo $?")
    assert run.stdout == b"2\n2\n" and run.stderr == b"danqing: standard output: No space left on device\n"


def test_what_an_encoding_lacks_is_escaped(make_shard: Any) -> None:
    run = shell("$D --help && $D score $'\\xb9\\xfe文.tar' -o x", PYTHONIOENCODING="ascii")
    assert run.returncode == 2 and run.stdout.startswith(b"Usage: danqing COMMAND")
    assert run.stderr == b"danqing: \\udcb9\\udcfe\\u6587.tar: no such file\n"


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "utf-8"])
def test_json_is_json_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    danqing.engine.cli.main._prepare_streams()
    result = {"folder": Path("é文😀\udcb9")}
    print_json(result)
    sys.stdout.flush()
    assert json.loads(raw.getvalue().decode(encoding)) == {"folder": str(result["folder"])}


@pytest.fixture
def small_files() -> Iterator[None]:
    """Limits the size of files that this process writes, which fails like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_names_the_file(tmp_path: Path, small_files: None) -> None:
    path = tmp_path / "scores" / "a.parquet"
    with pytest.raises(OSError, match=r"a\.parquet") as problem, commit(path) as file:
        file.write(bytes(10_000))
    assert problem.value.errno == errno.EFBIG and problem.value.filename == str(path)
    with pytest.raises(OSError, match=r"a\.npy") as problem, commit(path.with_suffix(".npy")) as file:
        np.save(file, np.zeros(10_000))  # its error has neither number nor name
    assert problem.value.errno == errno.ENOSPC
    assert not list(path.parent.iterdir())


def test_a_full_disk_is_one_line(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    curate(crawl, tmp_path / "out", plain_recipe, Settings())
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".part":
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert main(["decide", str(tmp_path / "out"), "--set", "words.max=50"]) == 2
    said = capsys.readouterr().err
    (message,) = [line for line in said.splitlines() if "No space left on device" in line]
    assert message.startswith(f"danqing: {tmp_path / 'out'}/") and "Traceback" not in said
    assert message.endswith("; free space there, then run the same command again")


def test_addresses_that_cannot_be_used_are_refused_before_anything_is_done(
    make_shard: Callable[..., Path], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, "")  # --endpoint sets it
    shard = str(make_shard(samples(0, 1)))
    for command, words in (
        (["select", "hf://datasets/x.parquet", "-o", str(tmp_path / "out")], "this kind of address is unknown"),
        (["score", shard, "-o", "ftp://host/out"], "known are s3://, gs://"),
        (["decide", "S3:///out"], "names no bucket"),
        (["curate", "pipe:cat 0.tar", "-o", str(tmp_path / "out")], "this kind of address is unknown"),
        (["curate", shard, "-o", str(tmp_path / "out"), "--against", "s3://user:word@bucket/out"], "set them in the"),
        (["curate", "https://host/0.tar?X-Amz-Signature=word", "-o", str(tmp_path / "out")], "with credentials in it"),
        (["merge", str(tmp_path), "-o", "https://host/out"], "only read"),
        (["demo", "-o", "s3://bucket/demo"], "-o must be a local folder"),
        (["curate", shard, "-o", "s3://bucket/out", "--endpoint", "minio:9000"], "write http://HOST:PORT"),
        (["curate", shard, "-o", "s3://b/out", "--endpoint", "ftp://h:1/"], "--endpoint ftp://h:1/: write http"),
        (["curate", shard, "-o", "s3://b/out", "--endpoint", "http://h:1/p"], "h:1/p: write http://HOST:PORT or https"),
        (["curate", shard, "-o", "s3://b/out", "--endpoint", "http://h:port"], "h:port: write http://HOST:PORT"),
        (["curate", shard, "-o", "s3://b/out", "--endpoint", "http://user:word@h"], "--endpoint h: write http"),
    ):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert words in message and message.count("\n") == 1, command
        assert "word@" not in message and "Signature" not in message
    assert not (tmp_path / "out").exists() and not Path("s3:").exists()


def test_an_output_that_is_a_file_or_cannot_be_made(
    make_shard: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    shard = str(make_shard(samples(0, 1)))
    for output, words in ((shard, "is a file; name a folder"), ("/proc/none/out", "cannot be written")):
        for command in (["curate", shard], ["score", shard]):
            assert main([*command, "-o", output]) == 2
            message = capsys.readouterr().err
            assert output in message and words in message and message.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_handled_once_and_the_handlers_are_restored(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # pytest may run under nohup

    def run(words: list[str]) -> int:
        try:
            signal.raise_signal(number)
        except StoppedError:
            signal.raise_signal(number)  # while it stops
            raise
        return 0

    try:
        monkeypatch.setattr(danqing.engine.cli.main, "_run", run)
        assert main(["score"]) == 128 + number and signal.getsignal(number) == signal.SIG_DFL
        assert capsys.readouterr().err == (
            f"danqing: stopped by {number.name}; finished shards are kept; the same command goes on from there\n"
        )
        assert main(["select"]) == 128 + number and "; finished parts are kept; " in capsys.readouterr().err
        assert main(["explain"]) == 128 + number
        assert capsys.readouterr().err == f"danqing: stopped by {number.name}\n"
        signal.signal(number, signal.SIG_IGN)
        monkeypatch.setattr(danqing.engine.cli.main, "_run", lambda words: signal.raise_signal(number) or 0)
        assert main(["score"]) == 0
    finally:
        signal.signal(number, before)


def test_a_user_without_a_home_is_told_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_path() == Path(os.environ["DANQING_CACHE"])
    monkeypatch.delenv("DANQING_CACHE")
    with pytest.raises(DanqingError, match="set DANQING_CACHE"):
        cache_path()
