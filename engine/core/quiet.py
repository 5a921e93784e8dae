"""Redirects stderr of native libraries: codecs in C print a line for every broken picture, and a crawl has millions."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def native_stderr_to(path: Path) -> Iterator[None]:
    """Appends what native libraries write to stderr to a file, during a `with` block.

    Output of Python (progress bars, tracebacks) still goes to stderr.
    """
    sys.stderr.flush()
    before = sys.stderr
    terminal = os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 2)
    os.close(log)
    try:
        if _writes_to(before, 2):
            sys.stderr = os.fdopen(terminal, "w", 1, encoding=before.encoding, errors=before.errors, closefd=False)
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = before
        os.dup2(terminal, 2)
        os.close(terminal)


def _writes_to(stream: object, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):  # the stream of a notebook or a test has no descriptor
        return False
