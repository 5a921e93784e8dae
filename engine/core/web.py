"""Files behind http and https addresses, as a file system of `pyarrow.fs` that can only be read."""

from __future__ import annotations

import email.utils
import io
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any, NoReturn
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pyarrow as pa
from pyarrow import fs

TIMEOUT_SECONDS = 30.0
URL_CHARACTERS = "%:/?#[]@!$&'()*+,;="
"""Characters that stay as they are; others, as spaces and Chinese, become escapes with %."""


@contextmanager
def _ask(url: str, **headers: str) -> Iterator[Any]:
    """Sends a request, HEAD if no headers are given, and opens the answer during a `with` block.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the server refuses or does not answer, or the connection breaks, also within the block.
    """
    try:
        request = Request(quote(url, safe=URL_CHARACTERS), headers=headers, method=None if headers else "HEAD")
        with urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            yield answer
    except HTTPError as problem:
        if problem.code in (404, 410):
            raise FileNotFoundError(url) from None
        raise OSError(f"HTTP Error {problem.code} {problem.reason}") from None
    except HTTPException as problem:
        raise OSError(f"{type(problem).__name__}: {problem}") from None


class _WebFile(io.RawIOBase):
    """A file that is read by ranges."""

    def __init__(self, url: str) -> None:
        with _ask(url) as answer:
            self._url, self._size, self._at = url, int(answer.headers["Content-Length"]), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, count: int = -1) -> bytes:
        last = self._size if count < 0 else min(self._at + count, self._size)
        if last <= self._at:
            return b""
        with _ask(self._url, Range=f"bytes={self._at}-{last - 1}") as answer:
            if answer.status != 206 and (self._at or last < self._size):
                raise OSError(f"{self._url}: the server does not send ranges of files")
            content: bytes = answer.read()
        self._at += len(content)
        return content


class WebFiles(fs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """Answers the requests of `fs.PyFileSystem`."""

    def get_type_name(self) -> str:
        return "web"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, url: str) -> fs.FileInfo:
        try:
            with _ask(url) as answer:
                size, changed = answer.headers["Content-Length"], answer.headers["Last-Modified"]
        except FileNotFoundError:
            return fs.FileInfo(url, fs.FileType.NotFound)
        if size is None:
            return fs.FileInfo(url, fs.FileType.Directory)
        seconds = email.utils.parsedate_to_datetime(changed).timestamp() if changed else 0
        return fs.FileInfo(url, fs.FileType.File, size=int(size), mtime=seconds)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_WebFile(path), mode="r")

    open_input_stream = open_input_file

    def get_file_info_selector(self, selector: fs.FileSelector) -> NoReturn:
        raise OSError("web servers list no folders; name the files, for example with {00000..00041}.tar")

    def _refuse(self, *arguments: object) -> NoReturn:
        raise OSError("web servers are only read")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = open_output_stream = open_append_stream = _refuse
