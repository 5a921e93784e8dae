"""Object storage: runs from and to an S3 server, and what happens when requests fail."""

from __future__ import annotations

import http.client
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

import danqing
from danqing.engine import phases
from danqing.engine.cli.main import main
from danqing.engine.core import buckets, local_copies, remote_lock, storage
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit, write_json
from danqing.engine.core.lock import Holder
from danqing.engine.core.logs import log
from danqing.engine.core.remote_lock import locked_object
from danqing.engine.core.storage import RemotePath, path_of
from danqing.engine.decide.feature_files import map_features, read_feature_rows
from danqing.engine.decide.reference import with_references
from danqing.engine.phases import curate, decide_run, write_run
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run import cluster
from danqing.engine.run.cluster import Worker
from danqing.engine.run.folder import Run
from danqing.engine.run.lock import lock_folder, lock_manifest
from danqing.engine.run.part import TaskPart
from danqing.engine.run.settings import Settings
from danqing.engine.score.workers import score_on_several
from danqing.engine.sources import Layout, Sample, find_shards, open_shard
from danqing.engine.sources.inputs import expand
from danqing.engine.stages.embed import ImageEmbedding
from danqing.engine.write.output import WriteOptions
from danqing.trt_models.model_set import ModelSet
from tests.conftest import picture
from tests.engine.kill_points import FirstPixels
from tests.engine.run.test_claims import Work, claim
from tests.engine.score.test_run import GOOD, crawl, samples, tree

__all__ = ["crawl"]

SECRET = "secret-of-the-user"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """An S3 server in a thread of this process; its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    yield "http://{}:{}".format(*moto.get_host_and_port())
    moto.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemotePath:
    """An empty bucket, and an empty cache for its copies."""
    for name, value in {
        buckets.ENDPOINT: server,
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
        local_copies.COPIES: str(tmp_path / "copies"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote_lock, "SETTLE_SECONDS", 0.0)
    name = f"b{abs(hash(tmp_path))}"
    urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", method="PUT")).read()
    found = path_of(f"s3://{name}")
    assert isinstance(found, RemotePath)
    return found


def put(folder: RemotePath, *files: str | Path) -> RemotePath:
    for file in files:
        storage.upload(Path(shutil.copy(file, f"{file}.copy")), folder / Path(file).name)
    return folder


def names(folder: RemotePath) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("**/*") if path.is_file())


def read(folder: Path) -> list[Sample]:
    return [sample for shard in find_shards([str(folder)]) for sample in open_shard(shard, Layout())]


def test_a_run_from_and_to_a_bucket_has_the_bytes_of_a_local_one(
    bucket: RemotePath,
    crawl: list[str],
    plain_recipe: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local, out = tmp_path / "out", bucket / "out"
    curate(crawl, local, plain_recipe, Settings())
    inputs = put(bucket / "in", *crawl)
    options = ["-o", str(out), "--recipe", str(tmp_path / "plain.yaml"), "--device", "cpu"]
    options += ["--endpoint", os.environ[buckets.ENDPOINT], "--cache", str(tmp_path / "chosen")]
    monkeypatch.setenv(buckets.ENDPOINT, "http://127.0.0.1:9")
    assert main(["curate", f"{inputs}/{{00000..00002}}.tar", *options]) == 0 and any((tmp_path / "chosen").iterdir())
    capsys.readouterr()
    assert tree(out) == tree(local) and "out/report.html" in names(bucket)
    decide_run(Run.open(out), load_recipe(tmp_path / "plain.yaml", ["aspect_ratio.max=1.2"]))
    assert (out / "stale" / "shards" / "00000.tar").exists() and not (out / "shards" / "00000.tar").exists()
    decide_run(Run.open(out), plain_recipe)
    for run in (out, local):
        write_run(Run.open(run), WriteOptions("parquet", 4, shuffle=1))
    assert not (out / "stale").exists()
    assert tree(out) == tree(local)
    assert len(read(local / "shards")) == 12 and read(local / "shards") == read(out / "shards")
    again, upload = set[str](), buckets.Bucket.upload
    with monkeypatch.context() as patch:
        patch.setattr(buckets.Bucket, "upload", lambda *args: (again.add(Path(args[2]).name), upload(*args)))
        curate([f"{inputs}/*.tar"], out, plain_recipe, Settings(), WriteOptions("parquet", 4, shuffle=1))
    again = {name for name in again if not name.endswith((".log", ".part"))}
    assert ".lock" in again and again <= {".lock", "run.json", "funnel.json"}
    assert not (out / ".lock").exists()
    key = danqing.open_run(str(out)).kept().to_table(columns=["key"])["key"][0].as_py()
    assert main(["explain", str(out), key]) == 0 and key in capsys.readouterr().out
    assert main(["report", str(out), str(local), "-o", f"{bucket}/compared", "--figures", f"{bucket}/figures"]) == 0
    assert {"comparison.html", "comparison.json"} == {path.name for path in (bucket / "compared").iterdir()}
    assert (bucket / "figures" / "funnel-a.svg").read_text().endswith("</svg>\n")
    assert len(list((out / "logs").iterdir())) >= 6  # score, decide and write twice or more
    stored = [path.read_bytes() for path in out.glob("**/*") if path.is_file() and path.suffix in (".json", ".log")]
    assert len(stored) > 3 and not any(SECRET.encode() in content for content in stored)


def test_several_workers_score_into_a_bucket(
    bucket: RemotePath, crawl: list[str], plain_recipe: Recipe, tmp_path: Path
) -> None:
    for out, settings in ((tmp_path / "out", Settings()), (bucket / "out", Settings(devices=("cpu", "cpu")))):
        curate(crawl, out, plain_recipe, settings)
    assert tree(bucket / "out") == tree(tmp_path / "out")


def test_selections_and_merges_on_a_bucket_are_those_of_local_folders(
    bucket: RemotePath, make_shard: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelSet, "session", lambda *_: FirstPixels())
    monkeypatch.setattr(ImageEmbedding, "capacity", 64)
    urls = [f"https://x.example/{number}.jpg" for number in range(5)]
    pq.write_table(pa.table({"url": urls, "caption": [GOOD, "小猫", GOOD, GOOD, ""]}), tmp_path / "urls.parquet")
    (tmp_path / "features.yaml").write_text(
        "recipe: features\nmodels: {image_embedding: efficientnet-lite0-conse}\n"
        "criteria: {words: {min: 1}, readable: {min: 1}, redundancy: {within: 0.01, keep: first}}\n"
    )
    recipe = load_recipe(tmp_path / "features.yaml")
    shards = [make_shard(samples(2 * n, 3), f"{n}.tar") for n in range(2)]
    put(bucket / "in", *shards, tmp_path / "urls.parquet")
    found = []
    for inputs, out in ((tmp_path, tmp_path), (bucket / "in", bucket)):
        danqing.select(inputs / "urls.parquet", out / "chosen", tmp_path / "features.yaml")
        for n in range(2):
            danqing.curate(f"{inputs}/{n}.tar", out / f"run{n}", recipe)
        merged = danqing.merge([out / "run0", out / "run1"], out / "both")
        assert merged.kept().count_rows() == 5
        chosen = {path.name: path.read_bytes() for path in sorted((out / "chosen" / "urls").iterdir())}
        found.append((chosen, tree(out / "both"), tree(out / "run1")))
    assert found[0] == found[1]
    assert danqing.merge([bucket / "run0", tmp_path / "run1"], tmp_path / "mixed").kept().count_rows() == 5
    with pytest.raises(DanqingError, match="run0: given twice"):
        danqing.merge([bucket / "run0", f"{bucket}//run0/"], tmp_path / "twice")
    against = with_references(recipe, [bucket / "run0"])
    assert decide_run(Run.open(tmp_path / "run1"), against).kept == 2
    shutil.rmtree(tmp_path / "copies")
    assert main(["report", str(bucket / "run0")]) == 0
    assert list((tmp_path / "copies").rglob("*.parquet")) and not list((tmp_path / "copies").rglob("*.npy"))


KILLED = """
import os, signal, sys
from danqing.engine.cli.main import main
from danqing.engine.core.buckets import Bucket
uploads = []
def upload(bucket, file, key):
    uploads.append(key)
    if key.endswith(sys.argv[1]):
        stream = bucket._files.open_output_stream(bucket._path(key))
        stream.write(bytes(24 << 20))  # of which Arrow sends parts of 10 MiB at once
        os.kill(os.getpid(), signal.SIGKILL)
    real(bucket, file, key)
real, Bucket.upload = Bucket.upload, upload
main(sys.argv[2:])
"""


def test_a_command_that_is_killed_during_an_upload_leaves_no_half_object_and_goes_on(
    bucket: RemotePath, crawl: list[str], plain_recipe: Recipe, tmp_path: Path
) -> None:
    inputs, out = put(bucket / "in", *crawl), bucket / "out"
    command = ["curate", str(inputs), "-o", str(out), "--recipe", str(tmp_path / "plain.yaml"), "--device", "cpu"]
    killed = subprocess.run([sys.executable, "-c", KILLED, "scores/00001.parquet", *command], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    there = names(out)
    assert "scores/00001.parquet" not in there and "features/00001.npy" in there and (out / ".lock").exists()
    curate([str(inputs)], out, plain_recipe, Settings())  # the holder of the lock is dead
    curate(crawl, tmp_path / "whole", plain_recipe, Settings())
    assert tree(out) == tree(tmp_path / "whole") and not (out / ".lock").exists()


@dataclass
class Proxy:
    """A server in front of the S3 server that plays faults.

    Attributes:
        faults: (part of the request line, what happens to it), each used once; "" stands for any.
        always: what happens to every request with `of` in its line.
        seen: request lines.
    """

    url: str = ""
    faults: list[tuple[str, str]] = field(default_factory=list)
    always: str = ""
    of: str = ""
    seen: list[str] = field(default_factory=list)

    def fault_of(self, line: str) -> str:
        self.seen.append(line)
        found = next((fault for fault in self.faults if fault[0] in line), None)
        if found:
            self.faults.remove(found)
            return found[1]
        return self.always if self.of in line else ""


ERRORS = {"SlowDown": "503", "ExpiredToken": "403"}
"""Code of an error of S3 → status."""


@pytest.fixture
def proxy(server: str, bucket: RemotePath, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    plan = Proxy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            fault = plan.fault_of(f"{self.command} {self.path}")
            if fault == "reset":  # what was not read makes the kernel reset the connection
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            while "chunked" in self.headers.get("Transfer-Encoding", "") and (size := int(self.rfile.readline(), 16)):
                body += self.rfile.read(size + 2)[:size]
            if "Transfer-Encoding" in self.headers:
                self.rfile.readline()
                del self.headers["Transfer-Encoding"]
            if fault.isdecimal() or fault in ERRORS:
                said = f"<Error><Code>{fault}</Code></Error>".encode() if fault in ERRORS else b""
                self.send_response(int(ERRORS.get(fault, fault)))
                self.send_header("Content-Length", str(len(said)))
                self.send_header("Retry-After", "1")
                self.end_headers()
                self.wfile.write(said if self.command != "HEAD" else b"")
                return
            connection = http.client.HTTPConnection(server.removeprefix("http://"))
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            if fault == "slow":
                time.sleep(0.5)
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "server", "date"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if fault == "half" else content)
            self.close_connection = fault == "half"

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    service = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    plan.url = f"http://127.0.0.1:{service.server_address[1]}"
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv(buckets.ENDPOINT, plan.url)
    monkeypatch.setattr(buckets, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(buckets, "GIVE_UP_SECONDS", 5.0)
    yield plan
    service.shutdown()
    thread.join()
    service.server_close()


def test_requests_that_fail_in_passing_are_made_again(proxy: Proxy, bucket: RemotePath, tmp_path: Path) -> None:
    path, content = bucket / "folder" / "large", os.urandom(100_000)
    proxy.faults += [("PUT", "500"), ("PUT", "503"), ("HEAD", "slow"), ("HEAD", "500"), ("GET", "half"), ("GET", "500")]
    with commit(path) as file:
        file.write(content)
    shutil.rmtree(tmp_path / "copies")
    assert path.open("rb").read() == content and path.read_bytes() == content and not proxy.faults
    proxy.faults += [("GET", "500"), ("GET", "half"), ("DELETE", "503"), ("GET", "slow")]
    assert names(bucket) == ["folder/large"]
    path.unlink()
    assert not path.exists()


def test_uploads_that_fail_leave_no_half_object(
    proxy: Proxy, bucket: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size, faults in (
        (100_000, [("PUT", "SlowDown"), ("PUT", "reset"), ("PUT", "SlowDown")]),
        (11 << 20, [("partNumber=2", "reset"), ("partNumber=2", "SlowDown"), ("POST", "500"), ("uploadId", "reset")]),
    ):
        path, content = bucket / f"{size}", os.urandom(size)
        proxy.faults += faults
        with commit(path) as file:
            file.write(content)
        assert path.read_bytes() == content and not proxy.faults
    monkeypatch.setattr(buckets, "GIVE_UP_SECONDS", 0.1)
    for of, fault, words in (
        ("partNumber=2", "SlowDown", "the storage does not answer"),
        ("uploadId=", "reset", "the storage does not answer"),
        ("partNumber=1", "ExpiredToken", "access is refused"),
    ):
        proxy.of, proxy.always, path = of, fault, bucket / "failed" / fault
        with pytest.raises(DanqingError, match=f"{path}: {words}"), commit(path) as file:
            file.write(content)
        proxy.always = ""
        assert names(bucket / "failed") == []
    assert not list((tmp_path / "copies").glob(".*"))


def test_a_run_whose_credentials_expire_ends_and_goes_on_with_others(
    proxy: Proxy, bucket: RemotePath, crawl: list[str], plain_recipe: Recipe, tmp_path: Path, capsys: Any
) -> None:
    out = bucket / "out"
    command = ["curate", *crawl, "-o", str(out), "--recipe", str(tmp_path / "plain.yaml"), "--device", "cpu"]
    proxy.of, proxy.always = "scores/00001.parquet", "ExpiredToken"
    assert main(command) == 2
    message = capsys.readouterr().err
    assert f"{out}/scores/00001.parquet: access is refused; check the cred" in message and SECRET not in message
    assert "scores/00001.parquet" not in names(out)
    proxy.always = ""
    assert main(command) == 0
    curate(crawl, tmp_path / "whole", plain_recipe, Settings())
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize(
    ("answer", "words"),
    [("500", "the storage does not answer; check network and endpoint"), ("403", "access is refused; check the cred")],
)
def test_a_storage_that_never_answers_or_refuses_ends_the_command_before_anything_is_scored(
    answer: str, words: str, proxy: Proxy, bucket: RemotePath, make_shard: Callable[..., Path], capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(buckets, "GIVE_UP_SECONDS", 0.2)
    shard = str(make_shard(samples(0, 1)))
    proxy.always = answer
    assert main(["curate", shard, "-o", str(bucket / "out")]) == 2
    message = capsys.readouterr().err
    assert words in message and f"{bucket}/out" in message and message.count("\n") == 1 and SECRET not in message
    proxy.always = ""
    assert names(bucket) == []


def test_what_is_not_there_is_named(
    bucket: RemotePath, make_shard: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    put(bucket / "in", make_shard(samples(0, 1), "0.tar"), make_shard(samples(1, 1), "a.jpg"))
    for arguments, words in (
        ([f"{bucket}/in/{{0..1}}.tar", "-o", str(bucket / "out")], f"{bucket}/in/1.tar: no such file"),
        ([f"{bucket}/no/*.tar", "-o", str(bucket / "out")], f"{bucket}/no/*.tar: matches no file"),
        (["s3://no-such-bucket/*.tar", "-o", str(tmp_path / "out")], "no such bucket"),
        ([f"{bucket}/in/0.tar", "-o", "s3://no-such-bucket/out"], "s3://no-such-bucket/out: no such bucket"),
        ([f"{bucket}/in/a.jpg", "-o", str(tmp_path / "out")], "not an input this command reads"),
    ):
        assert main(["curate", *arguments]) == 2
        message = capsys.readouterr().err
        assert words in message and message.count("\n") == 1
    assert main(["decide", str(bucket / "in")]) == 2 and "no run here" in capsys.readouterr().err
    (bucket / "in" / "0.tar").unlink()
    assert main(["curate", str(bucket / "in"), "-o", str(bucket / "out")]) == 2
    assert "single pictures are not listed on object storage" in capsys.readouterr().err
    assert names(bucket) == ["in/a.jpg"]


def test_globs_and_braces_find_what_they_find_in_local_folders(bucket: RemotePath, tmp_path: Path) -> None:
    local = tmp_path / "data"
    for name in ("a/0.tar", "a/1.tar", "a/.2.tar", "b/c/3.tar", "b/3.txt", "4.tar"):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).touch()
        put((bucket / name).parent, local / name)
    for pattern in ("*.tar", "a/*.tar", "**/*.tar", "a/[0-9].tar", "{a,b}/*", "b/*/3.tar", "a/{0..1}.tar", "x/*.tar"):
        here, there = (sorted(expand(f"{root}/{pattern}")) for root in (local, bucket))
        files = [path.removeprefix(f"{local}/") for path in here if Path(path).is_file()]
        assert [path.removeprefix(f"{bucket}/") for path in there if path_of(path).is_file()] == files


def test_tables_name_pictures_of_their_folder(bucket: RemotePath, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(1))
    (tmp_path / "t.csv").write_text(f"file_name,text\na.jpg,{GOOD}\nb.jpg,{GOOD}\n../a.jpg,{GOOD}\n")
    put(bucket / "in", tmp_path / "a.jpg", tmp_path / "t.csv")
    rows = read(bucket / "in" / "t.csv")
    assert rows[0].image == picture(1) and rows[0].caption == GOOD and rows[0].error is None
    errors = [str(row.error) for row in rows[1:]]
    assert "b.jpg: No such file" in errors[0] and "outside the input's folder" in errors[1] and len(errors) == 2


def test_copies_are_kept_replaced_and_removed_for_others(
    proxy: Proxy, bucket: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [bucket / f"{number}" for number in range(3)]
    for path in paths:
        with commit(path) as file:
            file.write(path.name.encode() * 1000)
    proxy.seen.clear()
    assert [path.open("rb").read()[:1] for path in paths] == [b"0", b"1", b"2"] and proxy.seen == []
    time.sleep(1.0 - time.time() % 1.0)  # another second, for the time of the changed object
    s3 = fs.S3FileSystem(endpoint_override=proxy.url.removeprefix("http://"), scheme="http", region="us-east-1")
    with s3.open_output_stream(f"{bucket.bucket.address.removeprefix('s3://')}/0") as file:  # another process
        file.write(b"x" * 1000)
    storage.forget()
    assert paths[0].open("rb").read() == b"x" * 1000
    now = time.time()
    for path, age in zip(paths, (900, 30, 600), strict=True):
        os.utime(storage.fetch(path), (now - age, now - age))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=10_000, free=500))
    local_copies._make_room(100)
    left = [path.name for path in (tmp_path / "copies").rglob("*") if path.is_file()]
    assert sorted(left) == ["0", "1", "2"]


def test_a_bucket_has_one_writer_at_a_time(
    bucket: RemotePath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = bucket / "out"
    lock = out / ".lock"
    with lock_folder(out) as taken, lock_folder(out) as again:
        assert (taken, again) == (True, False)
        thread = threading.Thread(target=lambda: main(["curate", "a.tar", "-o", str(out)]))
        thread.start()
        thread.join()
        message = capsys.readouterr().err
        assert f"in use by process {os.getpid()} on" in message and "ends after 120 s" in message
    assert not lock.exists()
    other = vars(Holder(host="another-host")) | {"token": "other"}
    write_json(lock, other)
    with pytest.raises(DanqingError, match="another-host"), lock_folder(out):
        pass
    ended = vars(Holder(pid=2**22)) | {"token": "other"}  # no process has this number
    for machine, is_free in ((remote_lock._machine(), True), ("another container with this host's name", False)):
        write_json(lock, ended | {"machine": machine})
        assert remote_lock.object_is_held(lock) is not is_free
    lock.unlink()
    upload = buckets.Bucket.upload

    def upload_and_lose(store: buckets.Bucket, file: Path, key: str) -> None:
        upload(store, file, key)
        monkeypatch.setattr(buckets.Bucket, "upload", upload)
        write_json(lock, other)  # another process writes its lock at the same time

    monkeypatch.setattr(buckets.Bucket, "upload", upload_and_lose)
    with pytest.raises(DanqingError, match="another-host"), lock_folder(out):
        pass
    monkeypatch.setattr(remote_lock, "LEASE_SECONDS", -1.0)  # it was not renewed
    with lock_folder(out):
        assert json.loads(lock.read_bytes())["pid"] == os.getpid()
        write_json(out / "before.json", {})  # the lock is renewed before
        write_json(lock, other)  # another process took it over
        with pytest.raises(DanqingError, match=r"was suspended .* another command has taken the folder"):
            write_json(out / "after.json", {})
        write_json(bucket / "elsewhere.json", {})
    assert not (out / "after.json").exists() and not storage.upload_checks
    assert json.loads(lock.read_bytes())["token"] == "other"


def test_workers_of_a_command_that_has_lost_its_folder_write_nothing(
    bucket: RemotePath, make_shard: Callable[..., Path], plain_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, out = str(make_shard(samples(0, 3))), bucket / "out"
    other = vars(Holder(host="another-host")) | {"token": "other"}

    def start_after_the_loss(*arguments: Any) -> Any:
        remote_lock._write(out / ".lock", other)  # the command was suspended, and another one has taken the folder
        return score_on_several(*arguments)

    monkeypatch.setattr(phases, "score_on_several", start_after_the_loss)
    with pytest.raises(DanqingError, match=r"cpu: .*/out: this command was suspended .* has taken the folder"):
        curate([shard], out, plain_recipe, Settings(devices=("cpu",)))
    assert not [name for name in names(out) if name.startswith(("scores", "features"))]
    assert json.loads((out / ".lock").read_bytes())["token"] == "other"


def test_a_worker_renews_the_lock_of_its_driver(bucket: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle(Worker):
        def open(self) -> str:
            return "here"

        def work(self, item: Any) -> None: ...

    out = bucket / "out"
    with lock_folder(out):
        checks = pickle.loads(pickle.dumps(tuple(storage.upload_checks)))
        token, renewed = json.loads((out / ".lock").read_bytes())["token"], list[Any]()
        with monkeypatch.context() as worker:
            worker.setattr(storage, "upload_checks", own := list[Any]())
            worker.setattr(cluster, "upload_checks", own)
            worker.setattr(log, "handlers", [])
            worker.setattr(remote_lock, "_write", lambda path, content: renewed.append((path, content["token"])))
            Idle().start(Path.cwd(), {}, checks)
            for name in ("a.json", "b.json"):
                write_json(out / name, {})
        assert renewed == [(out / ".lock", token)]  # before the first one; the lock is new then


def test_features_are_read_in_parts_unless_there_is_a_copy(proxy: Proxy, bucket: RemotePath, tmp_path: Path) -> None:
    path, features = bucket / "00000.npy", np.random.default_rng(1).random((3000, 64)).astype(np.float16)
    np.save(tmp_path / "features.npy", features)
    path.bucket.upload(tmp_path / "features.npy", path.key)
    for rows in ([0], [2999], [1, 2, 40, 2000, 2001, 2999], range(3000)):
        proxy.seen.clear()
        assert (read_feature_rows(path, np.array(rows)) == features[list(rows)]).all()
        assert sum(line.startswith("GET") for line in proxy.seen) <= 4 and not list(tmp_path.rglob("copies/**/*.npy"))
    proxy.faults += [("GET", "half"), ("GET", "500")]
    assert (read_feature_rows(path, np.array([7])) == features[[7]]).all() and not proxy.faults
    assert (map_features(path) == features).all()
    proxy.seen.clear()
    assert (read_feature_rows(path, np.array([7, 9])) == features[[7, 9]]).all() and not proxy.seen
    with pytest.raises(DanqingError, match=r"00001\.npy: missing"):
        read_feature_rows(bucket / "00001.npy", np.array([0]))


def test_parts_and_whole_commands_exclude_each_other_on_a_bucket(
    bucket: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first, second = bucket / "out", TaskPart(0, 2), TaskPart(1, 2)

    def is_free(part: TaskPart | None) -> bool:
        """Whether another thread, which holds none of this thread's locks, gets the lock."""
        found = []

        def enter() -> None:
            with suppress(DanqingError), lock_folder(out, part):
                found.append(part)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return bool(found)

    with lock_folder(out, first):
        assert [is_free(part) for part in (None, first, second)] == [False, False, True]
        with lock_manifest(out):
            assert is_free(second)
    with lock_folder(out):
        assert not is_free(first)
        assert [path.name for path in out.iterdir()] == [".lock"]  # the refused task has removed its own
    assert is_free(None) and not list(out.iterdir())

    write = remote_lock._write

    def start_a_part_and_write(path: RemotePath, content: Any) -> None:
        monkeypatch.setattr(remote_lock, "_write", write)
        task.enter_context(locked_object(out / f".lock{first.suffix}", others=lambda: [out / ".lock"]))
        write(path, content)

    monkeypatch.setattr(remote_lock, "_write", start_a_part_and_write)  # after the lock was found to be free
    with ExitStack() as task, pytest.raises(DanqingError, match=f"in use by process {os.getpid()} "), lock_folder(out):
        pass
    assert not list(out.iterdir())


def test_processes_claim_shards_on_a_bucket(bucket: RemotePath) -> None:
    out = bucket / "out"
    work = Work(out, 8, seconds=0.02)
    claim(out, 5, "host-1-killed")
    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(lambda _: work.run(), range(2))) == 8
    assert set(work.times.values()) == {1}
    assert names(out) == ["claims/scores/00005.host-1-killed"]
    with lock_folder(out):
        assert not names(out / "claims")


def test_inputs_are_read_from_web_servers(
    proxy: Proxy, server: str, bucket: RemotePath, crawl: list[str], tmp_path: Path, capsys: Any
) -> None:
    shutil.copy(crawl[2], tmp_path / "图 2.tar")
    put(bucket / "in", *crawl[:2], tmp_path / "图 2.tar")
    address = f"{bucket.parts[1]}/in"
    for name in ("00000.tar", "00001.tar", "图 2.tar"):
        public = {"x-amz-acl": "public-read", "Authorization": "AWS user:signature"}
        url = f"{server}/{address}/{urllib.parse.quote(name)}?acl"
        urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=public)).read()
    address = f"{proxy.url}/{address}"
    proxy.faults.append(("GET", "half"))
    web = find_shards([f"{address}/{{00000..00001}}.tar", f"{address}/图 2.tar"])
    local = find_shards(crawl)
    for here, there in zip(local, web, strict=True):
        assert list(open_shard(here, Layout())) == list(open_shard(there, Layout()))
    assert not proxy.faults
    for inputs, words in (
        (f"{address}/*.tar", "web servers list no folders"),
        (f"{address}/9.tar", "9.tar: no such file"),
    ):
        assert main(["curate", inputs, "-o", str(tmp_path / "other")]) == 2
        assert words in capsys.readouterr().err
