"""Benchmarks: the engine beside what people use."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path


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
