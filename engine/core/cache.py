"""The cache folder: models, compiled kernels, and copies of remote files."""

from __future__ import annotations

import os
from pathlib import Path

from danqing.engine.core.errors import DanqingError


def cache_path() -> Path:
    """Returns the cache folder: `DANQING_CACHE`, else `danqing` in the user's cache folder. It may not exist yet.

    Raises:
        DanqingError: the user has no home folder, and no variable names a cache folder; or it has an address.
    """
    if folder := folder_from("DANQING_CACHE"):
        return folder
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "danqing"
    except RuntimeError:
        raise DanqingError("this user has no home folder; set DANQING_CACHE to a folder that can be written") from None


def folder_from(variable: str) -> Path | None:
    """Returns the local folder that a variable of the environment names, or None.

    Raises:
        DanqingError: the variable has an address.
    """
    folder = os.environ.get(variable)
    if folder and "://" in folder:
        raise DanqingError(f"{variable} must be a local folder, not {folder}")
    return Path(folder) if folder else None
