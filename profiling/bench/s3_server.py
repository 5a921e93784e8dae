"""An S3 server of this machine (moto), in a process of its own, for benchmarks of object storage."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from danqing.engine.core import buckets, storage
from danqing.engine.core.storage import RemotePath

SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
moto.start()
print("http://{}:{}".format(*moto.get_host_and_port()), flush=True)
sys.stdin.read()
"""


@contextmanager
def s3_bucket() -> Iterator[RemotePath]:
    """Serves an empty bucket during a `with` block; child processes find the server by the environment."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            os.environ |= {
                buckets.ENDPOINT: server.stdout.readline().strip(),
                "AWS_ACCESS_KEY_ID": "user",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
            request = urllib.request.Request(f"{os.environ[buckets.ENDPOINT]}/bench", method="PUT")
            urllib.request.urlopen(request).read()
            bucket = storage.path_of("s3://bench")
            assert isinstance(bucket, RemotePath)
            yield bucket
        finally:
            server.kill()
