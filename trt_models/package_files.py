"""Files that models are made of: in installed packages, beside a card, in the cache; checked by hash."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import cache_path, writing_cache


def cache_folder() -> Path:
    """The folder `engine.core.files.cache_path`, created if it does not exist.

    Raises:
        DanqingError: it cannot be created.
    """
    folder = cache_path()
    with writing_cache():
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def package_file(package: str | None, file: str, folder: Path | None = None) -> Path:
    """A data file of an installed package (found without importing it), or one relative to `folder`."""
    if package is None:
        path = (folder or Path()) / file
        if not path.is_file():
            raise DanqingError(f"{path}: no such file")
        return path
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise DanqingError(f"the package {package!r} is missing: pip install {package}") from None
    path = Path(str(distribution.locate_file(file)))
    if not path.is_file():
        raise DanqingError(f"{path}: not in {package} {distribution.version}; the card was written for another version")
    return path


def sha256(path: Path) -> str:
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


@cache
def _digest(path: Path, size: int, modified: int) -> str:
    """Large files are read once a process, unless they change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, expected: str | None, source: str) -> None:
    """Raises DanqingError unless the file has the SHA-256 that `source` states."""
    if not path.is_file():
        raise DanqingError(f"{path}: missing, {source} names it; remove the folder {path.parent} and make it again")
    found = sha256(path)
    if found != expected:
        raise DanqingError(
            f"{path}: SHA-256 is {found[:16]}…, {source} says {(expected or '')[:16]}…; refusing to load it"
        )
