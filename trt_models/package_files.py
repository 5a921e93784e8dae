"""Finds the files of models (in installed packages, beside a card, in the cache) and checks their hashes."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

from danqing.engine.core.cache import cache_path
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import writing_cache


def cache_folder() -> Path:
    """Returns `engine.core.cache.cache_path()`, and creates the folder if it does not exist.

    Raises:
        DanqingError: the folder cannot be created.
    """
    folder = cache_path()
    with writing_cache():
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def package_file(package: str | None, file: str, folder: Path | None = None) -> Path:
    """Finds a data file, without importing the package.

    Args:
        package: name of an installed distribution; None for a file in `folder`.
        file: path relative to the distribution's root, or to `folder`.
        folder: None for the current directory.

    Raises:
        DanqingError: the package is not installed, or it has no such file.
    """
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
    """Returns the SHA-256 of a file in hexadecimal. A file is read again only if its size or time has changed."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


@cache
def _digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, expected: str | None, source: str) -> None:
    """Checks the SHA-256 of a file.

    Args:
        path: the file.
        expected: its SHA-256 in hexadecimal.
        source: the file that states `expected`, for the message.

    Raises:
        DanqingError: the file is missing or has another SHA-256.
    """
    if not path.is_file():
        raise DanqingError(
            f"{path}: missing, although {source} names it; remove the folder {path.parent} and build the model again"
        )
    found = sha256(path)
    if found != expected:
        raise DanqingError(
            f"{path}: SHA-256 is {found[:16]}…, {source} says {(expected or '')[:16]}…; refusing to load it"
        )
