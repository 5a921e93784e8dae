"""Paths on object storage: a `RemotePath` can be used wherever the engine takes a `Path`.

A remote file is read from a local copy, which is downloaded when it is first opened and kept in the cache. It is
written (`files.commit`) to a local file, which is uploaded when it is complete. Codecs, Arrow and NumPy therefore read
and write local files only.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PosixPath
from typing import Any, Self, TypeAlias, TypeVar

from danqing.engine.core.buckets import RENAMES, SCHEMES, WEB, Bucket, Entry, open_bucket
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.local_copies import copies_folder, copy_of, has_copy, keep

T = TypeVar("T")

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://?([^/]*)|pipe:")
"""Start of an address. One slash suffices, since `Path` reduces two to one."""
FILES_AT_ONCE = 16
"""Files that are read from storage at the same time."""

_known: dict[str, Entry] = {}
"""Address → size and time of objects, as last answered by the storage; cleared by `forget`."""
_writes: dict[str, int] = {}
"""Address → number of this process's last write of the object, over all objects; cleared by `forget`."""
_write_numbers = itertools.count(1)
_buckets: set[str] = set()
"""Addresses of buckets that exist."""
UploadCheck: TypeAlias = "Callable[[RemotePath], None]"
upload_checks: list[UploadCheck] = []
"""Called with the object before each upload; what one raises prevents it (`engine.core.remote_lock`). A process gives
them to its workers, so that these do not write to a folder that it has lost."""


def path_of(text: str | os.PathLike[str]) -> Path:
    """Returns the path of a local file or folder, or of one on object storage if the text is an address.

    >>> str(path_of("s3://bucket/shards") / "00000.tar")
    's3://bucket/shards/00000.tar'
    >>> str(path_of("S3:/bucket/shards"))
    's3://bucket/shards'

    Raises:
        DanqingError: an address of another scheme, without a bucket, or with credentials in it.
    """
    if isinstance(text, RemotePath):
        return text
    text = os.fspath(text)
    found = ADDRESS.match(text)
    if found is None:
        return Path(text)
    scheme, bucket = (found[1] or "pipe").lower(), found[2] or ""
    user, _, host = bucket.rpartition("@")
    if scheme == "file":
        return Path("/", text[found.end(1) + 1 :].lstrip("/"))
    if scheme in ("s3a", "s3n"):
        raise DanqingError(f"{scheme}://{host}: write s3://{host}")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise DanqingError(f"{text}: this kind of address is unknown; known are {known}")
    if not bucket and scheme in RENAMES:
        return RemotePath(f"{scheme}://default/{text[found.end() :]}")
    if not bucket:
        raise DanqingError(f"{text}: names no bucket")
    if ":" in user or (scheme in WEB and (user or "?" in text)):
        raise DanqingError(
            f"{scheme}://{host}: an address with credentials in it, which would be stored with the run; leave them out "
            "and set them in the environment"
        )
    return RemotePath(scheme + text[found.end(1) :])


class RemotePath(PosixPath):
    """A file or folder on object storage.

    Names behave as those of a `Path`; existence, size and time are asked from the storage. `open` and `os.fspath`,
    which Arrow and NumPy call, give the copy in the cache. Files are written by `files.commit` only. A folder exists
    as long as it holds files.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        return str(fetch(self))

    @property
    def scheme(self) -> str:
        """`s3`, `https` …"""
        return self.parts[0].rstrip(":").lower()

    @property
    def bucket(self) -> Bucket:
        """The path's bucket."""
        return open_bucket(self.scheme, self.parts[1] if len(self.parts) > 1 else "")

    @property
    def key(self) -> str:
        """The path within its bucket."""
        return "/".join(self.parts[2:])

    def entry(self) -> Entry:
        """Returns existence, size and time. Those of an object are remembered until `forget`.

        Raises:
            DanqingError: no such bucket, or the storage refuses the question.
        """
        known = _known.get(str(self))
        if known is None:
            known = self.bucket.info(self.key)
            if known.is_file:
                _known[str(self)] = known
            elif not known.exists:
                _check_bucket(self)
        return known

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self.entry().exists

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self.entry().is_file

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self.entry().exists and not self.entry().is_file

    def is_symlink(self) -> bool:
        return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Returns kind, size and time. The inode number changes when this process writes the object, or by `forget`."""
        entry = self.entry()
        if not entry.exists:
            raise _missing(self)
        kind = stat.S_IFREG if entry.is_file else stat.S_IFDIR
        times = (entry.seconds,) * 3
        return os.stat_result((kind | 0o644, _writes.get(str(self), 0), 0, 1, 0, 0, entry.size or 0, *times))

    def iterdir(self) -> Generator[Self, None, None]:
        there = self.bucket.list(self.key)
        if not there:
            _check_bucket(self)
        for entry in there:
            path = self / entry.name
            if entry.is_file:
                _known[str(path)] = entry
            yield path

    def glob(self, pattern: str, **options: Any) -> Generator[Self, None, None]:
        """Yields the matches of a pattern, as `glob.glob` finds them: `**` for any folders, hidden names only if the
        pattern's begins with a dot."""
        found = [self]
        names = pattern.split("/")
        for name in names:
            if name == "**":
                found = [below for path in found for below in path._folders()]
            elif not has_magic(name):
                found = [path / name for path in found]
            else:
                there = (child for path in found for child in path.iterdir())
                hidden = name.startswith(".")
                found = [p for p in there if fnmatchcase(p.name, name) and (hidden or not p.name.startswith("."))]
        yield from found if has_magic(names[-1]) else (path for path in found if path.exists())

    def _folders(self) -> Iterator[Self]:
        """The folder and all folders in it, at any depth."""
        yield self
        for path in self.iterdir():
            if str(path) not in _known and not path.name.startswith("."):
                yield from path._folders()

    def open(self, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        """Opens the copy in the cache for reading."""
        if set(mode) & set("wax+"):
            raise ValueError(f"{self}: remote files are written by engine.core.files.commit")
        return super().open(mode, *arguments, **named)

    def read_bytes(self) -> bytes:
        """Reads the object as it is now, not its copy."""
        try:
            return self.bucket.read(self.key)
        except FileNotFoundError:
            raise _missing(self) from None

    def read_text(self, encoding: str | None = None, errors: str | None = None, **named: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok or self.exists():
            self.bucket.delete(self.key)
        _known.pop(str(self), None)

    def replace(self, target: Any) -> Any:
        """Moves the object within its bucket."""
        self.bucket.move(self.key, target.key)
        for path in (self, target):
            _known.pop(str(path), None)
        return target

    def copy_to(self, target: RemotePath) -> None:
        """Copies the object within its bucket."""
        self.bucket.copy(self.key, target.key)
        _known.pop(str(target), None)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing, since folders need not be made."""

    def rmdir(self) -> None:
        """Does nothing, since empty folders do not exist."""

    def resolve(self, strict: bool = False) -> Self:
        return self

    def absolute(self) -> Self:
        return self


def _missing(path: RemotePath) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _check_bucket(path: RemotePath) -> None:
    """Raises DanqingError if the bucket of a path does not exist."""
    bucket = path.bucket.address
    if bucket in _buckets or path.scheme in WEB:
        return
    try:
        missing = not path.bucket.info("").exists
    except DanqingError:  # a policy may allow objects and refuse the question for the bucket
        missing = False
    if missing:
        raise DanqingError(f"{path}: no such bucket")
    _buckets.add(bucket)


def has_magic(text: str) -> bool:
    """Whether a text has one of the characters of a glob."""
    return any(character in text for character in "*?[")


def glob(pattern: str) -> list[Path]:
    """Lists the matches of an address with a glob, sorted.

    Raises:
        DanqingError: the glob is in the bucket's name.
    """
    scheme, bucket, *names = path_of(pattern).parts
    if has_magic(bucket) and scheme.rstrip(":") not in WEB:  # the host of a web server may be [::1]
        raise DanqingError(f"{pattern}: globs apply to keys, not to buckets; write {{a,b}} for several buckets")
    fixed = next((place for place, name in enumerate(names) if has_magic(name)), len(names))
    root = RemotePath(scheme, bucket, *names[:fixed])
    return sorted(root.glob("/".join(names[fixed:])))


def look_up(paths: Iterable[Path]) -> None:
    """Remembers size and time of many objects by listing their folders, with 1,000 objects a request."""
    for folder in dict.fromkeys(path.parent for path in paths if isinstance(path, RemotePath)):
        if folder.scheme not in WEB:
            list(folder.iterdir())


def forget() -> None:
    """Forgets sizes and times of objects. Call it where other processes can have replaced objects."""
    _known.clear()
    _writes.clear()


def fetch(path: RemotePath) -> Path:
    """Returns the copy of a remote file, downloaded if the cache has none. Threads and processes wait for each other.

    Raises:
        FileNotFoundError: there is no such object.
        DanqingError: the storage refuses or does not answer, or the cache cannot be written.
    """
    entry = path.entry()
    if not entry.exists:
        raise _missing(path)
    if not entry.is_file:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    try:
        return copy_of(str(path), entry, lambda file: path.bucket.download(path.key, entry.size or 0, file))
    except FileNotFoundError:
        raise _missing(path) from None


def fetch_all(paths: Iterable[Path]) -> None:
    """Downloads those of several files that are remote, `FILES_AT_ONCE` at a time."""
    remote = [path for path in paths if isinstance(path, RemotePath)]
    if len(remote) > 1:
        look_up(remote)
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            list(pool.map(fetch, (path for path in remote if path.exists())))


def fetch_together(path: Path, names: Iterable[str]) -> Path:
    """Downloads a remote file and others of its folder into one local folder; returns the local path of the file.

    Args:
        path: the file.
        names: the other files, relative to its folder.
    """
    if not isinstance(path, RemotePath):
        return path
    local = fetch(path)
    for name in names:
        link = local.parent / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():  # or its target was removed
            link.unlink(missing_ok=True)
            with suppress(FileExistsError):
                link.symlink_to(fetch(path.parent / name))
    return local


def fetch_ahead(items: Iterable[T], path: Callable[[T], Path]) -> Iterator[T]:
    """Yields items, and downloads the remote file of the next item while the caller works on one.

    Args:
        items: an item with a local file is taken when it is asked for, one with a remote file one item earlier.
        path: returns the file of an item.
    """
    iterator = iter(items)
    item = next(iterator, None)
    with ThreadPoolExecutor(1) as pool:
        while item is not None:
            following = next(iterator, None) if isinstance(path(item), RemotePath) else None
            if following is not None and isinstance(there := path(following), RemotePath):
                pool.submit(fetch, there)  # what fails here fails again when the file is opened
            yield item
            item = next(iterator, None) if following is None else following


def arrow_source(path: Path) -> Any:
    """Returns what Arrow reads parts of a file from, for example a Parquet footer, without downloading the file."""
    return path.bucket.open(path.key) if isinstance(path, RemotePath) else path


def is_local_or_cached(path: Path) -> bool:
    """Whether a file is local, or has a copy in the cache."""
    return not isinstance(path, RemotePath) or has_copy(str(path), path.entry())


def upload(file: Path, path: RemotePath) -> None:
    """Moves a local file to object storage, in one step; the cache keeps it as the object's copy.

    Raises:
        DanqingError: the storage refuses or does not answer, or this process has lost its lock.
    """
    for check in tuple(upload_checks):
        check(path)
    size = file.stat().st_size
    path.bucket.upload(file, path.key)
    _known.pop(str(path), None)
    _writes[str(path)] = next(_write_numbers)
    entry = path.entry()
    if entry.size != size:
        raise DanqingError(f"{path}: {size:,} bytes were written, the storage has {entry.size or 0:,}; write it again")
    keep(file, str(path), entry)


def folder_for_temporary_files(folder: Path) -> Path:
    """Returns the folder itself if it is local, else the folder of the copies."""
    return copies_folder() if isinstance(folder, RemotePath) else folder


def remove_tree(folder: Path) -> None:
    """Removes a folder and what is in it, if it exists."""
    if not isinstance(folder, RemotePath):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.is_dir():
        folder.bucket.delete_folder(folder.key)
        forget()
