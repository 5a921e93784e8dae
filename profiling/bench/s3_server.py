"""S3 servers of this machine for benchmarks of object storage, each in a process of its own.

`s3_bucket` is moto, which stores. `served_folder` sends the files of a folder as fast as the kernel copies them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

from danqing.engine.core import buckets, storage
from danqing.engine.core.storage import RemotePath

BUCKET = "bench"
MOTO = """
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
    with _server([sys.executable, "-c", MOTO]) as endpoint:
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).read()
        bucket = storage.path_of(f"s3://{BUCKET}")
        assert isinstance(bucket, RemotePath)
        yield bucket


@contextmanager
def served_folder(folder: Path) -> Iterator[str]:
    """Serves the files of a folder as objects during a `with` block; yields the address of their folder."""
    with _server([sys.executable, "-m", __name__, str(folder)]):
        yield f"s3://{BUCKET}/shards"


@contextmanager
def _server(command: list[str]) -> Iterator[str]:
    """Runs a server that prints its address, during a `with` block; sets the environment for its clients."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            endpoint = server.stdout.readline().strip()
            os.environ |= {
                buckets.ENDPOINT: endpoint,
                "AWS_ACCESS_KEY_ID": "user",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
            yield endpoint
        finally:
            server.kill()


def serve(folder: Path) -> None:
    """Answers a reader's requests: HEAD and ranges of `/bench/shards/NAME`, and the list of `/bench`."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    modified, modified_header = "2026-01-01T00:00:00.000Z", "Thu, 01 Jan 2026 00:00:00 GMT"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(0, None)

        def do_GET(self) -> None:
            if "?" in self.path:
                return self.list()
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            self.answer(int(first), int(last) + 1)

        def answer(self, first: int, end: int | None) -> None:
            path = folder / Path(self.path).name
            if not path.is_file():
                self.send_response(404)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            size = path.stat().st_size
            last = size if end is None else min(end, size)
            self.send_response(200 if end is None else 206)
            self.send_header("Content-Length", str(last - first))
            self.send_header("Content-Range", f"bytes {first}-{last - 1}/{size}")
            self.send_header("Last-Modified", modified_header)
            self.end_headers()
            with path.open("rb") as file:
                while end is not None and first < last:
                    first += os.sendfile(self.connection.fileno(), file.fileno(), first, last - first)

        def list(self) -> None:
            paths = sorted(folder.iterdir())
            found = "".join(
                f"<Contents><Key>shards/{escape(path.name)}</Key><LastModified>{modified}</LastModified>"
                f"<Size>{path.stat().st_size}</Size></Contents>"
                for path in paths
            )
            head = f"<IsTruncated>false</IsTruncated><KeyCount>{len(paths)}</KeyCount>"
            text = f"<ListBucketResult>{head}{found}</ListBucketResult>".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
