"""Benchmarks: the engine beside what people use."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from danqing.engine.core.errors import DanqingError


def in_scratch(name: str, work: Callable[[Path], object]) -> int:
    """Does the work with a folder that is gone afterwards; returns the exit status: 2 if it raised a DanqingError,
    which is then printed."""
    with TemporaryDirectory(prefix="danqing-bench-") as scratch:
        try:
            work(Path(scratch))
        except DanqingError as problem:
            print(f"{name}: {problem}", file=sys.stderr)
            return 2
    return 0


def machine(packages: Iterable[str]) -> str:
    """The processor and the versions of what is installed, on one line."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    versions = (f"{name} {version}" for name in packages if (version := _version(name)))
    return ", ".join((found[1] if found else platform.machine(), f"Python {platform.python_version()}", *versions))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
