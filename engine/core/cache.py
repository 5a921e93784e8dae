"""The cache folder: models, compiled kernels, and copies of remote files."""

from __future__ import annotations

import os
from pathlib import Path

from danqing.engine.core.errors import DanqingError


def cache_path() -> Path:
    """Returns the cache folder: `DANQING_CACHE`, else `danqing` in the user's cache folder. It may not exist yet.

    Raises:
        DanqingError: the user has no home folder, and no variable names a cache folder.
    """
    if folder := os.environ.get("DANQING_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "danqing"
    except RuntimeError:
        raise DanqingError("this user has no home folder; set DANQING_CACHE to a folder that can be written") from None
