"""Requests to the buckets of object storage, through `pyarrow.fs`; requests that fail are repeated for a while.

Arrow is imported when the first address is opened, since the command line imports this module to print its help.
"""

from __future__ import annotations

import os
import random
import re
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

from danqing.engine.core.errors import DanqingError

T = TypeVar("T")

WEB = ("http", "https")
"""Schemes that are only read."""
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", *WEB)
APPEARS_COMPLETE = ("s3", "gs", "gcs")
"""Schemes of stores that show an object only when its upload is complete; others get it under a temporary name."""
RENAMES = ("hdfs", "viewfs")
"""Schemes with a rename; the others copy and delete."""
ENDPOINT = "AWS_ENDPOINT_URL"
"""Variable of the environment with the address of an S3-compatible store; `--endpoint` sets it."""
ENDPOINT_ADDRESS = re.compile(r"(https?)://((?:[^/?#@:\[\]\s]+|\[[0-9a-f:.]+\])(?::\d{1,5})?)/?", re.IGNORECASE)
PART_BYTES = 16 << 20
"""Bytes of one request. S3 gives 50–100 MB/s a connection, so a part takes a fraction of a second."""
CONNECTIONS = 8
"""Parts of one object that are read at the same time."""
GIVE_UP_SECONDS = 60.0
"""Time after which a request that keeps failing is an error."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.25, 8.0
"""Pauses between two attempts; each is twice the one before."""
CONNECT_SECONDS, STALL_SECONDS = 10.0, 10.0
"""Time to connect, and time without a byte, after which an S3 request has failed. Arrow's 3 s are too short for a store
that many nodes use."""
REFUSED = re.compile(
    "access_?denied|invalid_?access_?key_?id|signature_?does_?not_?match|invalid_?client_?token|expired_?token|"
    "invalid_?token|authentication_?failed|authorization_?failure|permission_?denied|unauthenticated|credential|"
    "permission denied|http (status|response code|error) 40[13]",
    re.IGNORECASE,
)
"""Answers of stores that refuse the credentials; another attempt would not help."""
NO_BUCKET = re.compile(
    "no_?such_?bucket|bucket '.*' not found|container_?not_?found|bucket does not exist", re.IGNORECASE
)
PERMANENT = re.compile("only read|list no folders|libhdfs|does not send ranges|not implemented", re.IGNORECASE)
"""Errors that another attempt does not change."""


@dataclass(frozen=True)
class Entry:
    """An object, or a folder: the common start of the keys of objects.

    Attributes:
        name: the last part of its key.
        exists: whether there is one.
        size: bytes of an object; None for a folder.
        seconds: time of its last change, Unix time in whole seconds: some stores round it in one answer of two.
    """

    name: str
    exists: bool
    size: int | None
    seconds: int

    @property
    def is_file(self) -> bool:
        """Whether it is an object."""
        return self.exists and self.size is not None


class Bucket:
    """A bucket, container or host. Keys are relative to it; the empty key is the bucket itself.

    Its methods raise FileNotFoundError if there is no such object, and DanqingError if the storage refuses a request or
    has not answered it for `GIVE_UP_SECONDS`.

    Args:
        address: names the bucket in errors, `s3://bucket`.
        files: answers the requests, a `pyarrow.fs.FileSystem`.
        root: the bucket, as `files` names it.
    """

    def __init__(self, address: str, files: Any, root: str) -> None:
        self.address, self._files, self._root = address, files, root
        self.scheme = address.partition(":")[0]

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root or "/"  # HDFS has no buckets

    def _attempt(self, key: str, request: Callable[[], T]) -> T:
        return attempt(f"{self.address}/{key}", request)

    def info(self, key: str) -> Entry:
        """Asks for one object or folder."""
        return _entry(self._attempt(key, lambda: self._files.get_file_info(self._path(key))))

    def list(self, key: str) -> list[Entry]:
        """Lists what is directly in a folder; nothing if it does not exist."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._path(key), allow_not_found=True)
        return list(map(_entry, self._attempt(key, lambda: self._files.get_file_info(selector))))

    def open(self, key: str) -> Any:
        """Opens an object as Arrow's random access file."""
        return self._attempt(key, lambda: self._files.open_input_file(self._path(key)))

    def read(self, key: str) -> bytes:
        """Reads a small object."""

        def read() -> bytes:
            with self._files.open_input_file(self._path(key)) as file:
                return _whole(file.read(), file.size())

        return self._attempt(key, read)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
        """Reads parts of an object, several at a time.

        Args:
            key: of the object.
            ranges: first byte and number of bytes of each part.
        """
        with self.open(key) as source, ThreadPoolExecutor(CONNECTIONS) as pool:
            return tuple(pool.map(lambda part: self._range(key, source, *part), ranges))

    def _range(self, key: str, source: Any, first: int, count: int) -> bytes:
        return self._attempt(key, lambda: _whole(source.read_at(count, first), count))

    def download(self, key: str, size: int, file: IO[bytes]) -> None:
        """Reads an object of a known size into a local file, in parts, several at a time.

        Args:
            key: of the object.
            size: of the object in bytes.
            file: opened for writing, empty.
        """
        source = self.open(key)
        if size:  # a full disk is noticed now, and writing then costs ext4 0.8 CPU seconds a GB, not 3.1
            os.posix_fallocate(file.fileno(), 0, size)

        def copy(first: int) -> None:
            part = self._range(key, source, first, min(PART_BYTES, size - first))
            while part:  # a disk that fills up takes a part of it
                written = os.pwrite(file.fileno(), part, first)
                part, first = part[written:], first + written

        with source, ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(copy, range(0, size, PART_BYTES)))

    def upload(self, file: Path, key: str) -> None:
        """Makes a local file an object, which appears when it is complete."""
        import pyarrow as pa

        folder, _, name = key.rpartition("/")
        written = key if self.scheme in APPEARS_COMPLETE else f"{folder}/.{name}.{uuid.uuid4().hex}.part"

        def write() -> None:
            content = pa.memory_map(str(file)).read_buffer() if file.stat().st_size else b""
            with self._files.open_output_stream(self._path(written)) as stream:
                stream.write(content)

        # Arrow completes the object when the stream is closed, after an exception, too. Exceptions of signals come in
        # the main thread, so the stream is in another one; and one write from mapped memory raises none of its own.
        # `pyarrow.fs.copy_files` returns without an error if completing a small object fails.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self._attempt, key, write).result()
        if written != key:
            self.move(written, key)

    def move(self, key: str, target: str) -> None:
        """Moves an object within the bucket."""
        if self.scheme in RENAMES:
            if self.info(target).exists:
                self.delete(target)
            self._attempt(target, lambda: self._files.create_dir(self._path(target.rpartition("/")[0])))
            self._attempt(key, lambda: self._files.move(self._path(key), self._path(target)))
        else:
            self.copy(key, target)
            self.delete(key)

    def copy(self, key: str, target: str) -> None:
        """Copies an object within the bucket."""
        self._attempt(key, lambda: self._files.copy_file(self._path(key), self._path(target)))

    def delete(self, key: str) -> None:
        """Deletes an object."""
        self._attempt(key, lambda: self._files.delete_file(self._path(key)))

    def delete_folder(self, key: str) -> None:
        """Deletes all objects of a folder."""
        with suppress(FileNotFoundError):  # on Google Cloud: the empty object that stands for a folder
            self._attempt(key, lambda: self._files.delete_dir(self._path(key)))


def _entry(info: Any) -> Entry:
    seconds = (info.mtime_ns or 0) // 10**9
    return Entry(info.base_name, info.type.name != "NotFound", info.size if info.is_file else None, seconds)


def _whole(content: bytes, size: int) -> bytes:
    if len(content) != size:  # a connection that breaks can end an answer early, without an error
        raise EOFError(f"{len(content):,} bytes came of {size:,}")
    return content


def open_bucket(scheme: str, bucket: str) -> Bucket:
    """Opens a bucket, with credentials from the environment.

    Args:
        scheme: one of `SCHEMES`.
        bucket: name of the bucket or container, or the host.

    Raises:
        DanqingError: it cannot be opened: no credentials, no such bucket, a library that is missing.
    """
    return _open(scheme, bucket, os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get(ENDPOINT) or "")


@cache
def _open(scheme: str, bucket: str, endpoint: str) -> Bucket:
    from pyarrow import fs

    address = f"{scheme}://{bucket}"
    if scheme in WEB:
        from danqing.engine.core.web import WebFiles

        return Bucket(address, fs.PyFileSystem(WebFiles()), address)
    if scheme == "s3":
        return Bucket(address, attempt(address, lambda: _open_s3(bucket, endpoint)), bucket)
    if scheme in ("gs", "gcs"):
        limit = timedelta(seconds=GIVE_UP_SECONDS)
        return Bucket(address, attempt(address, lambda: fs.GcsFileSystem(retry_time_limit=limit)), bucket)
    files, root = attempt(address, lambda: fs.FileSystem.from_uri(f"{address}/"))
    return Bucket(address, files, root.rstrip("/"))


def _open_s3(bucket: str, endpoint: str) -> Any:
    from pyarrow.fs import S3FileSystem, resolve_s3_region

    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options: dict[str, Any] = {"region": region or ("us-east-1" if endpoint else resolve_s3_region(bucket))}
    if endpoint:
        found = ENDPOINT_ADDRESS.fullmatch(endpoint)
        if found is None:
            shown = endpoint.rpartition("@")[2]  # without a user's name and password
            raise DanqingError(f"--endpoint {shown}: write http://HOST:PORT or https://HOST, without a path")
        options |= {"scheme": found[1].lower(), "endpoint_override": found[2]}
    # Small objects are then written by one request, not by the three of an upload in parts.
    return S3FileSystem(
        **options, connect_timeout=CONNECT_SECONDS, request_timeout=STALL_SECONDS, allow_delayed_open=True
    )


def attempt(address: str, request: Callable[[], T]) -> T:
    """Makes a request, and repeats it after a pause if it fails in a way that another attempt can change.

    Args:
        address: names the object in errors.
        request: can be made any number of times.

    Raises:
        FileNotFoundError: there is no such object.
        DanqingError: the storage refuses the request, or has not answered it for `GIVE_UP_SECONDS`.
    """
    import pyarrow as pa

    deadline, pause = time.monotonic() + GIVE_UP_SECONDS, FIRST_PAUSE_SECONDS
    while True:
        try:
            return request()
        except (OSError, EOFError, pa.ArrowException) as problem:
            text = " ".join(str(problem).split())
            if NO_BUCKET.search(text):
                raise DanqingError(f"{address}: no such bucket") from None
            if isinstance(problem, FileNotFoundError):
                raise
            if isinstance(problem, PermissionError) or REFUSED.search(text):
                raise DanqingError(
                    f"{address}: access is refused; check the credentials in the environment, and region and policy of "
                    f"the bucket ({text})"
                ) from None
            if isinstance(problem, pa.ArrowInvalid) or PERMANENT.search(text):
                raise DanqingError(f"{address}: {text}") from None
            if time.monotonic() + pause > deadline:
                raise DanqingError(
                    f"{address}: the storage does not answer; check network and endpoint, then run the same command "
                    f"again: it goes on where it stopped ({text})"
                ) from None
        time.sleep(pause * random.uniform(0.5, 1))  # many workers would come back at the same moment
        pause = min(2 * pause, MAX_PAUSE_SECONDS)
