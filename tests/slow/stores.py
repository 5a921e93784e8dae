"""Runs from and to emulators of Azure Blob Storage and Google Cloud Storage, beside a run in local folders.

    npm install azurite && pip install gcp-storage-emulator
    AZURITE=node_modules/.bin/azurite-blob pytest tests/slow/stores.py -s

Emulators differ from the stores in credentials, limits and consistency. HDFS has not been tried.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from danqing.engine.core import buckets, local_copies, remote_lock, storage
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


def azure(port: int) -> Any:
    place = f"127.0.0.1:{port}"
    return fs.AzureFileSystem(
        ACCOUNT, account_key=KEY, blob_storage_authority=place, blob_storage_scheme="http", dfs_storage_authority=place,
        dfs_storage_scheme="http",
    )  # fmt: skip


def google(port: int) -> Any:
    limit = timedelta(seconds=5)
    return fs.GcsFileSystem(
        anonymous=True, scheme="http", endpoint_override=f"127.0.0.1:{port}", retry_time_limit=limit, project_id="test"
    )


STORES = {
    "abfs://bench@devstoreaccount1.dfs.core.windows.net": (
        [
            os.environ.get("AZURITE", "azurite-blob"),
            *("--silent", "--disableTelemetry", "--inMemoryPersistence", "--skipApiVersionCheck", "--blobPort"),
        ],
        azure,
    ),
    "gs://bench": ([sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory", "--port"], google),
}
"""Address of a bucket → the emulator's command, which a port follows, and what opens its file system."""


@contextmanager
def emulator(command: list[str]) -> Iterator[int]:
    """Runs an emulator during a `with` block; yields its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([*command, str(port)]) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.2)
            yield port
        finally:
            process.terminate()


@pytest.mark.parametrize("address", STORES)
def test_a_run_from_and_to_a_store_has_the_bytes_of_a_local_one(
    address: str, crawl: list[str], plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, connect = STORES[address]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    if command[1:2] == ["-m"]:
        pytest.importorskip(command[2])
    monkeypatch.setenv(local_copies.COPIES, str(tmp_path / "copies"))
    monkeypatch.setattr(remote_lock, "SETTLE_SECONDS", 0.1)
    with emulator(command) as port:
        files = connect(port)
        files.create_dir("bench")
        opened = buckets.Bucket(address, files, "bench")
        monkeypatch.setattr(storage, "open_bucket", lambda scheme, bucket: opened)
        bucket = path_of(address)
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
        print(f"{address}: {len(tree(out))} equal files")
