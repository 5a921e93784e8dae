"""Compares runs on HDFS and on emulators of Azure Blob Storage and Google Cloud Storage with a run in local folders.

    npm install azurite && pip install gcp-storage-emulator
    AZURITE=node_modules/.bin/azurite-blob pytest tests/slow/stores.py -s

Emulators differ from the stores in credentials, limits and consistency. HDFS is a NameNode and a DataNode on this
machine. Both need a JVM and Hadoop's jars; Arrow needs libhdfs and the same jars. pyspark 2.4 has the jars of Hadoop
2.7, servers included, in deps/jars; pydoop 2.0 has the source of libhdfs in src/libhdfs.

    HADOOP_JARS=jars ARROW_LIBHDFS_DIR=lib JAVA_HOME=/usr/lib/jvm/java-17-openjdk-amd64 pytest tests/slow/stores.py -s
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from pyarrow import fs

from danqing.engine.core import local_copies, remote_lock, storage
from danqing.engine.core.buckets import Bucket, open_bucket
from danqing.engine.core.storage import RemotePath, path_of
from danqing.engine.phases import curate, decide_run
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from tests.engine.score.test_run import crawl, tree

__all__ = ["crawl"]

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Account and key of the emulator, as its documentation names them."""
START_SECONDS = 60.0


@contextmanager
def listening(command: list[str], port: int) -> Iterator[None]:
    """Runs a server during a `with` block, which starts when the server accepts connections at the port."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.2)
            yield
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def azure(folder: Path) -> Iterator[Bucket]:
    command = os.environ.get("AZURITE", "azurite-blob")
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed")
    options = ["--silent", "--disableTelemetry", "--inMemoryPersistence", "--skipApiVersionCheck", "--blobPort"]
    place = f"127.0.0.1:{(port := free_port())}"
    with listening([command, *options, str(port)], port):
        files = fs.AzureFileSystem(
            ACCOUNT, account_key=KEY, blob_storage_authority=place, blob_storage_scheme="http",
            dfs_storage_authority=place, dfs_storage_scheme="http",
        )  # fmt: skip
        files.create_dir("bench")
        yield Bucket(f"abfs://bench@{ACCOUNT}.dfs.core.windows.net", files, "bench")


@contextmanager
def google(folder: Path) -> Iterator[Bucket]:
    pytest.importorskip("gcp_storage_emulator")
    place = f"127.0.0.1:{(port := free_port())}"
    with listening([sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory", "--port", str(port)], port):
        files = fs.GcsFileSystem(
            anonymous=True, scheme="http", endpoint_override=place, retry_time_limit=timedelta(seconds=5),
            project_id="test",
        )  # fmt: skip
        files.create_dir("bench")
        yield Bucket("gs://bench", files, "bench")


@contextmanager
def hdfs(folder: Path) -> Iterator[Bucket]:
    if "HADOOP_JARS" not in os.environ:
        pytest.skip("HADOOP_JARS names no jars of Hadoop")
    jars = Path(os.environ["HADOOP_JARS"]).resolve()
    java = str(Path(os.environ["JAVA_HOME"], "bin", "java"))
    place, data = f"127.0.0.1:{free_port()}", f"127.0.0.1:{(data_port := free_port())}"
    for name in ("hdfs", "datanode", "static"):  # the servers do not start without the folders of their web pages
        (folder / "conf" / "webapps" / name).mkdir(parents=True)
    settings = {
        "core-site.xml": {"fs.defaultFS": f"hdfs://{place}", "hadoop.tmp.dir": str(folder / "hadoop")},
        "hdfs-site.xml": {
            "dfs.namenode.http-address": "127.0.0.1:0",
            "dfs.datanode.http.address": "127.0.0.1:0",
            "dfs.datanode.ipc.address": "127.0.0.1:0",
            "dfs.datanode.address": data,
            "dfs.replication": "1",
            "dfs.webhdfs.enabled": "false",
        },
    }
    for name, properties in settings.items():
        written = "".join(f"<property><name>{k}</name><value>{v}</value></property>" for k, v in properties.items())
        (folder / "conf" / name).write_text(f"<configuration>{written}</configuration>")
    os.environ["CLASSPATH"] = ":".join([str(folder / "conf"), *map(str, sorted(jars.glob("*.jar")))])
    servers = "namenode.NameNode", "datanode.DataNode"
    name_node, data_node = (
        [java, "-cp", os.environ["CLASSPATH"], f"org.apache.hadoop.hdfs.server.{name}"] for name in servers
    )
    subprocess.run([*name_node, "-format", "-nonInteractive"], check=True, capture_output=True)
    with listening(name_node, int(place.rpartition(":")[2])), listening(data_node, data_port):
        yield open_bucket("hdfs", place)


@pytest.mark.parametrize("store", [azure, google, hdfs])
def test_a_run_from_and_to_a_store_has_the_bytes_of_a_local_one(
    store: Callable[[Path], AbstractContextManager[Bucket]],
    crawl: list[str],
    plain_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(local_copies.COPIES, str(tmp_path / "copies"))
    monkeypatch.setattr(remote_lock, "SETTLE_SECONDS", 0.1)
    with store(tmp_path / "store") as opened:
        monkeypatch.setattr(storage, "open_bucket", lambda scheme, bucket: opened)
        bucket = path_of(opened.address)
        assert isinstance(bucket, RemotePath) and not (bucket / "in").exists()
        local, out = tmp_path / "out", bucket / "out"
        curate(crawl, local, plain_recipe, Settings())
        for path in map(Path, crawl):
            storage.upload(Path(shutil.copy(path, f"{path}.copy")), bucket / "in" / path.name)
        curate([f"{bucket}/in/*.tar"], out, plain_recipe, Settings())
        assert tree(out) == tree(local)
        decide_run(Run.open(out), load_recipe(tmp_path / "plain.yaml", ["aspect_ratio.max=1.2"]))
        assert (out / "stale" / "shards" / "00000.tar").exists() and not (out / "shards" / "00000.tar").exists()
        decide_run(Run.open(out), plain_recipe)
        curate([f"{bucket}/in/*.tar"], out, plain_recipe, Settings())
        assert tree(out) == tree(local) and not (out / "stale").exists() and not (out / ".lock").exists()
        assert not [path for path in out.glob("**/.*") if path.is_file()]
        print(f"{opened.address}: {len(tree(out))} equal files")
