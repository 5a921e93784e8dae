"""The log of a run: log records and what native libraries (codecs) write to stderr."""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.local_copies import scratch_file
from danqing.engine.core.logs import handled_by
from danqing.engine.core.quiet import native_stderr_to
from danqing.engine.core.storage import RemotePath, upload


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Appends to a log during a `with` block.

    Object storage cannot append, so there the block writes a log of its own, logs/TIME-HOST-NAME.log beside the path,
    which is uploaded when the block ends.
    """
    with _local_file(path) as file:
        handler = _LogFile(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        with handled_by(handler), native_stderr_to(file):
            yield


@contextmanager
def _local_file(path: Path) -> Iterator[Path]:
    if not isinstance(path, RemotePath):
        yield path
        return
    with scratch_file(path.name) as file:
        try:
            yield file
        finally:
            if file.exists() and file.stat().st_size:
                when, which = time.strftime("%Y%m%dT%H%M%S", time.gmtime()), uuid.uuid4().hex[:8]
                with suppress(DanqingError):  # the block's own error says more
                    upload(file, path.parent / "logs" / f"{when}-{socket.gethostname()}-{which}.log")


class _LogFile(logging.FileHandler):
    """A log file that drops lines if the disk is full; by default, each of them would print a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Does nothing."""
