"""Paths on object storage: `RemotePath` stands where a `Path` of a local file may stand.

A remote file is read from a local copy, which is downloaded when it is first opened and kept in the cache; it is
written (`files.commit`) to a local file, which is uploaded when it is complete. So whatever reads or writes a file
works on a local one, and object storage is only asked to list, read, write and delete whole objects.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path, PosixPath
from typing import Any, Self, TypeVar

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.local_copies import copies_folder, copy_of, keep, scratch_file, temporary_name
from danqing.engine.core.store import RENAMES, SCHEMES, WEB, Entry, Store, open_store

T = TypeVar("T")

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://?([^/]*)|pipe:")
"""Start of an address; one slash is enough, since `Path` makes one of two."""
FILES_AT_ONCE = 16
"""Files that `fetch_all` downloads at the same time."""

_known: dict[str, Entry] = {}
"""Address → size and time of the objects that this process has asked for, until `forget`."""
_writes: dict[str, int] = {}
"""Address → how often this process has written the object."""
_buckets: set[str] = set()
"""Buckets that were found to exist."""


def path_of(text: str | os.PathLike[str]) -> Path:
    """Returns the path of a local file or folder, or of one on object storage if the text is an address.

    >>> str(path_of("s3://bucket/shards") / "00000.tar")
    's3://bucket/shards/00000.tar'

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
    if scheme == "file":
        return Path("/", text[found.end(1) + 1 :].lstrip("/"))
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise DanqingError(f"{text}: this kind of address is unknown; known are {known}")
    if not bucket and scheme in RENAMES:
        return RemotePath(f"{scheme}://default/{text[found.end() :]}")
    if not bucket:
        raise DanqingError(f"{text}: names no bucket")
    user, _, host = bucket.rpartition("@")
    if ":" in user or (scheme in WEB and (user or "?" in text)):
        raise DanqingError(
            f"{scheme}://{host}: an address with credentials in it, which would be stored with the run; leave them out "
            "and set them in the environment"
        )
    return RemotePath(text)


class RemotePath(PosixPath):
    """A file or folder on object storage.

    Names are computed as those of any `Path`. Questions go to the storage. Where a local file is needed (`open` to
    read, `os.fspath`: Arrow, NumPy and other libraries), it is the copy in the cache. Files are written by
    `files.commit` only. Folders exist as long as they hold files.
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
    def store(self) -> Store:
        """The path's bucket."""
        return open_store(self.scheme, self.parts[1] if len(self.parts) > 1 else "")

    @property
    def key(self) -> str:
        """The path within its bucket."""
        return "/".join(self.parts[2:])

    def entry(self) -> Entry:
        """Whether there is an object or folder, its size and time. What is found is remembered until `forget`.

        Raises:
            DanqingError: no such bucket, or the storage refuses the question.
        """
        known = _known.get(str(self))
        if known is None:
            known = self.store.info(self.key)
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
        """Returns kind, size and time; the inode's number changes when this process writes the object."""
        entry = self.entry()
        if not entry.exists:
            raise _missing(self)
        kind = stat.S_IFREG if entry.is_file else stat.S_IFDIR
        times = (entry.seconds,) * 3
        return os.stat_result((kind | 0o644, _writes.get(str(self), 0), 0, 1, 0, 0, entry.size or 0, *times))

    def iterdir(self) -> Generator[Self, None, None]:
        there = self.store.list(self.key)
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
        """Opens the copy in the cache, to read it."""
        if set(mode) & set("wax+"):
            raise ValueError(f"{self}: remote files are written by engine.core.files.commit")
        return super().open(mode, *arguments, **named)

    def read_bytes(self) -> bytes:
        """Reads the object as it is now, not its copy."""
        try:
            return self.store.read(self.key)
        except FileNotFoundError:
            raise _missing(self) from None

    def read_text(self, encoding: str | None = None, errors: str | None = None, **named: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok or self.exists():
            self.store.delete(self.key)
        _known.pop(str(self), None)

    def replace(self, target: Any) -> Any:
        """Moves the object within its bucket."""
        self.store.move(self.key, target.key)
        for path in (self, target):
            _known.pop(str(path), None)
        return target

    def copy_to(self, target: RemotePath) -> None:
        """Copies the object within its bucket."""
        self.store.copy(self.key, target.key)
        _known.pop(str(target), None)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing."""

    def rmdir(self) -> None:
        """Does nothing."""

    def resolve(self, strict: bool = False) -> Self:
        return self

    def absolute(self) -> Self:
        return self


def _missing(path: RemotePath) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _check_bucket(path: RemotePath) -> None:
    """Raises DanqingError if the bucket of a path does not exist."""
    bucket = path.store.address
    if bucket in _buckets or path.scheme in WEB:
        return
    try:
        missing = not path.store.info("").exists
    except DanqingError:  # a policy may allow objects and refuse the question for the bucket
        missing = False
    if missing:
        raise DanqingError(f"{path}: no such bucket")
    _buckets.add(bucket)


def has_magic(text: str) -> bool:
    """Whether a text has one of the characters of a glob."""
    return any(character in text for character in "*?[")


def glob(pattern: str) -> list[Path]:
    """Lists the matches of an address with a glob, sorted."""
    scheme, bucket, *names = path_of(pattern).parts
    fixed = next((place for place, name in enumerate(names) if has_magic(name)), len(names))
    root = RemotePath(scheme, bucket, *names[:fixed])
    return sorted(root.glob("/".join(names[fixed:])))


def look_up(paths: Iterable[Path]) -> None:
    """Asks for the objects of many addresses at once, by listing their folders: 1,000 objects a request."""
    for folder in dict.fromkeys(path.parent for path in paths if isinstance(path, RemotePath)):
        if folder.scheme not in WEB:
            list(folder.iterdir())


def forget() -> None:
    """Forgets sizes and times of objects, which other processes may have replaced; copies are compared with them."""
    _known.clear()


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
        return copy_of(str(path), entry, lambda file: path.store.download(path.key, entry.size or 0, file))
    except FileNotFoundError:
        raise _missing(path) from None


def fetch_all(paths: Iterable[Path]) -> None:
    """Downloads the remote ones of several files, many at a time; local files need nothing."""
    remote = [path for path in paths if isinstance(path, RemotePath)]
    if len(remote) > 1:
        look_up(remote)
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            list(pool.map(fetch, (path for path in remote if path.exists())))


def fetch_together(path: Path, names: Iterable[str]) -> Path:
    """Returns the local file of a path, beside which are those of other files of its folder.

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
    """Yields items; while the caller works on one with a remote file, the file of the next one is downloaded.

    Args:
        items: local ones are taken when they are asked for, remote ones one earlier.
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


def ranged(path: Path) -> Any:
    """What Arrow reads parts of a file from, as the footer of Parquet: a remote one is not downloaded for it."""
    return path.store.open(path.key) if isinstance(path, RemotePath) else path


def upload(file: Path, path: RemotePath) -> None:
    """Makes a local file an object, in one step; the file becomes the object's copy in the cache.

    Raises:
        DanqingError: the storage refuses or does not answer.
    """
    size = file.stat().st_size
    path.store.upload(file, path.key)
    _known.pop(str(path), None)
    _writes[str(path)] = _writes.get(str(path), 0) + 1
    entry = path.entry()
    if entry.size != size:
        raise DanqingError(f"{path}: {size:,} bytes were written, the storage has {entry.size or 0:,}; write it again")
    keep(file, str(path), entry)


def temporary_for(path: Path) -> Path:
    """A new name for a file that is written aside: in the folder of a local path, in the cache for a remote one."""
    name = temporary_name(path.name)
    return copies_folder() / name if isinstance(path, RemotePath) else path.with_name(name)


def folder_for_temporary_files(folder: Path) -> Path:
    """The folder itself, or that of the copies if it is remote."""
    return copies_folder() if isinstance(folder, RemotePath) else folder


def remove_tree(folder: Path) -> None:
    """Removes a folder and what is in it, if it exists."""
    if not isinstance(folder, RemotePath):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.is_dir():
        folder.store.delete_folder(folder.key)
        forget()


@contextmanager
def local_log(path: Path) -> Iterator[Path]:
    """Yields a local file to append to: the path itself, or one that is uploaded at the end of a `with` block.

    Object storage cannot append, and processes would overwrite each other's lines, so each writes a log of its own:
    logs/TIME-HOST-NAME.log beside the path.
    """
    if not isinstance(path, RemotePath):
        yield path
        return
    with scratch_file(path.name) as temporary:
        try:
            yield temporary
        finally:
            if temporary.exists() and temporary.stat().st_size:
                when, which = time.strftime("%Y%m%dT%H%M%S", time.gmtime()), uuid.uuid4().hex[:8]
                with suppress(DanqingError):  # what the block raises says more
                    upload(temporary, path.parent / "logs" / f"{when}-{socket.gethostname()}-{which}.log")
