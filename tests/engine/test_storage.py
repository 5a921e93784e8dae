"""Object storage: runs from and to an S3 server, and what happens when requests fail."""

from __future__ import annotations

import logging
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from danqing.engine.core import storage
from danqing.engine.core.storage import RemotePath, path_of
from danqing.engine.phases import curate
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from tests.engine.score.test_run import crawl, tree

__all__ = ["crawl"]


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
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-user",
        "AWS_EC2_METADATA_DISABLED": "true",
        storage.COPIES: str(tmp_path / "copies"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("danqing.engine.core.remote_lock.SETTLE_SECONDS", 0.0)
    name = f"b{abs(hash(tmp_path))}"
    urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", method="PUT")).read()
    found = path_of(f"s3://{name}")
    assert isinstance(found, RemotePath)
    return found


def put(bucket: RemotePath, folder: str, files: list[str]) -> RemotePath:
    for file in files:
        path = bucket / folder / Path(file).name
        storage.upload(Path(shutil.copy(file, f"{file}.copy")), path)
    return bucket / folder


def test_a_run_from_and_to_a_bucket_has_the_bytes_of_a_local_one(
    bucket: RemotePath, crawl: list[str], plain_recipe: Recipe, tmp_path: Path
) -> None:
    curate(crawl, tmp_path / "out", plain_recipe, Settings())
    inputs = put(bucket, "in", crawl)
    out = bucket / "out"
    curate([str(inputs)], out, plain_recipe, Settings())
    assert tree(out) == tree(tmp_path / "out")
