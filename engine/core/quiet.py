"""Codecs written in C print a line on stderr for every broken picture; a crawl has millions of these."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def native_stderr_to(path: Path) -> Iterator[None]:
    """Appends to a file what native libraries write on stderr, for the length of a `with` block.

    What Python writes (progress bars, tracebacks) goes where it went before.
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
    except (AttributeError, OSError, ValueError):  # a notebook's, a test's
        return False
