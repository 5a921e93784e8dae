"""Index of a tar: `walk_plain` reads tars of plain headers, `tarfile` every other tar.

Python's `tarfile` takes about 25 µs a member, during which it holds the interpreter's lock; `walk_plain` takes 2. It
reads the headers that writers of shards write: ustar and GNU headers of regular files and folders, with names of at
most 100 bytes, optionally after a pax record of the time (webdataset's TarWriter writes one). If it finds anything else
(long names, links, sparse members, other pax records, a wrong checksum, an early end), `tarfile` reads the whole tar.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

BLOCK = tarfile.BLOCKSIZE
WINDOW = 16 * BLOCK
"""Bytes per read. Mostly enough for the headers of a pair's small members, so that a pair takes one read."""
CHECKED_TOGETHER = 2048
"""Headers checked in one NumPy call: 1 MiB."""
SKIPPED = 1 << 20
"""Bytes per read of what follows an end-of-archive mark."""

NUMBERS = [(100, 108), (108, 116), (116, 124), (124, 136), (136, 148), (148, 156), (329, 337), (337, 345)]
"""First byte and end of the header's octal numbers: mode, uid, gid, size, mtime, checksum, device major and minor."""
SIZE, CHECKSUM, TYPE, PREFIX = slice(124, 135), slice(148, 156), 156, 345
FILES, FOLDER, PAX = b"0\0", ord("5"), ord("x")
TIME = re.compile(rb"(\d+) mtime=\d+(?:\.\d+)?\n")
"""The only pax record that the walk reads: it changes neither name nor size."""
ABSURD_NUMBERS = (ValueError, OverflowError, MemoryError)
"""Errors that `tarfile` lets through where a header holds an absurd number."""

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"(\xb5/\xfd": "zstd"}
"""First bytes of compressed files → name of the compression."""

Member = tuple[str, int, int]
"""A regular file in a tar: name, offset of its content, size of its content in bytes. A plain tuple, since a NamedTuple
takes a third of a microsecond more."""


class Link(NamedTuple):
    """A hard or symbolic link in a tar, and the name of the member that it stands for."""

    target: str
    is_hard: bool


@dataclass
class Index:
    """The members of a tar.

    Attributes:
        members: the regular files, in order. A link has the content of the member that it names.
        damage: place and problem of everything that cannot be read.
        holes: offset of a sparse member's content → the (position in the file, bytes) of its stored parts.
    """

    members: list[Member] = field(default_factory=list)
    damage: list[tuple[str, str]] = field(default_factory=list)
    holes: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


def read_members(path: Path) -> Index:
    """Lists the regular files of a tar, in order, without reading their content.

    Args:
        path: the tar, uncompressed.

    Returns:
        The members before the first damage (a broken or missing end, a member that is cut off), and the damage.

    Raises:
        OSError: the file cannot be read.
        tarfile.TarError: the file is not a tar.
    """
    plain = walk_plain(path)
    return walk_tarfile(path) if plain is None else Index(plain)


def read_sparse(descriptor: int, offset: int, size: int, parts: list[tuple[int, int]]) -> bytes:
    """Reads a sparse member's content; its holes are zeros."""
    content = bytearray(size)
    for position, stored in parts:
        content[position : position + stored] = os.pread(descriptor, stored, offset)
        offset += stored
    return bytes(content[:size])


def walk_plain(path: Path) -> list[Member] | None:
    """Lists the regular files of an undamaged tar of plain headers; None if it is not certain to be one.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return _walk(file.fileno(), os.fstat(file.fileno()).st_size)


def _walk(descriptor: int, end: int) -> list[Member] | None:
    members: list[Member] = []
    headers = bytearray()
    window, start, at = b"", 0, 0
    timed = False  # whether a pax record stands before this header
    while True:
        header = window[at - start : at - start + BLOCK]
        if len(header) < BLOCK:
            window, start = os.pread(descriptor, WINDOW, at), at
            header = window[:BLOCK]
            if len(header) < BLOCK:
                return None
        kind, offset = header[TYPE], at + BLOCK
        if kind in FILES and header[0]:
            member = _plain_member(header, offset, end)
            if member is None:
                return None
            members.append(member)
            at, timed = offset + (member[2] + BLOCK - 1) // BLOCK * BLOCK, False
        elif kind == FOLDER:
            at, timed = offset, False
        elif kind == PAX and not timed:
            records = window[at - start + BLOCK : at - start + 2 * BLOCK]
            if not _only_time(header, records if len(records) == BLOCK else os.pread(descriptor, BLOCK, offset)):
                return None
            at, timed = offset + BLOCK, True
        elif timed or any(header):
            return None
        elif (joined := _after_zeros(descriptor, at)) is None:
            return members if _plain(headers) else None
        else:
            at = joined
            continue
        headers += header
        if len(headers) == CHECKED_TOGETHER * BLOCK:
            if not _plain(headers):
                return None
            headers.clear()


def _plain_member(header: bytes, offset: int, end: int) -> Member | None:
    """Reads the header of a regular file, whose content begins at `offset`; None if the content is not in the file."""
    try:
        size = int(header[SIZE], 8)
    except ValueError:
        return None
    name = header[:100].partition(b"\0")[0]
    if size < 0 or offset + size > end or (header[TYPE] == 0 and name.endswith(b"/")):
        return None
    return name.decode(tarfile.ENCODING, "surrogateescape"), offset, size


def _after_zeros(descriptor: int, at: int) -> int | None:
    """Returns the offset of the next archive, the first nonzero block from `at` on; None if only zeros follow."""
    while data := os.pread(descriptor, SKIPPED, at):
        if zeros := len(data) - len(data.lstrip(b"\0")):
            data = data[zeros:]
        if data:
            return at + zeros // BLOCK * BLOCK
        at += zeros
    return None


def _only_time(header: bytes, records: bytes) -> bool:
    """Whether a pax header's block of records holds exactly one record, of a time."""
    found = TIME.match(records)
    if found is None:
        return False
    size = found.end()
    return int(found[1]) == size and header[SIZE] == b"%011o" % size and not records[size:].strip(b"\0")


def _plain(headers: bytearray) -> bool:
    """Whether all headers have correct checksums, numbers in plain octal digits and no prefix of the name; `tarfile`
    and `walk_plain` read such headers in the same way."""
    blocks = np.frombuffer(headers, np.uint8).reshape(-1, BLOCK)
    for first, last in NUMBERS:
        number = blocks[:, first:last]
        digits = (number & 0xF8) == ord("0")
        blank = (number == 0) | (number == ord(" "))
        if not (digits | blank).all() or (digits[:, 1:] & blank[:, :-1]).any() or digits[:, -1].any():
            return False  # not digits, then spaces and NULs
    checksum = blocks[:, CHECKSUM]
    if (checksum[:, :6] < ord("0")).any() or checksum[:, 6].max(initial=0) > ord(" "):
        return False  # not six digits
    expected = (checksum[:, :6] - np.int64(ord("0"))) @ (8 ** np.arange(5, -1, -1))
    found = blocks.sum(1, np.uint32) - checksum.sum(1, np.uint32) + 8 * ord(" ")
    return bool((found == expected).all() and not blocks[:, PREFIX].any())


def walk_tarfile(path: Path) -> Index:
    """Lists the members of any kind of tar with `tarfile`; see `read_members`."""
    index = Index()
    with path.open("rb") as file:
        first = file.read(max(map(len, COMPRESSED)))
        if name := next((name for magic, name in COMPRESSED.items() if first.startswith(magic)), None):
            raise tarfile.ReadError(f"it is compressed with {name}; unpack it first")
        start: int | None = 0
        while start is not None:
            begin, links = len(index.members), dict[int, Link]()
            start = _walk_archive(file, start, os.fstat(file.fileno()).st_size, index, links)
            _resolve_links(index, links, begin)
    return index


def _walk_archive(file: BinaryIO, start: int, size: int, index: Index, links: dict[int, Link]) -> int | None:
    """Adds the members of the archive that begins at `start`; returns where the next one begins.

    Args:
        file: the tar.
        start: offset of the archive's first header.
        size: of the file in bytes.
        index: receives members and damage.
        links: receives position in `index.members` → link.
    """
    file.seek(start)
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # reads the first header, too
    except ABSURD_NUMBERS as problem:
        raise tarfile.ReadError(f"its first header has an absurd number: {problem}") from None
    before = -1
    try:
        while member := _next_member(tar):
            parts: list[tuple[int, int]] | None = member.sparse  # type: ignore[assignment]  # typed as bytes
            stored = member.size if parts is None else sum(count for _, count in parts)
            leads_back = tar.offset <= before  # to headers that were read before
            if member.size < 0 or stored < 0 or leads_back:
                raise _DamageError(_place(member), "has an absurd size; nothing after it is read")
            before = tar.offset
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            _add_member(member, size - stored, index, links)
        if reason := _damage_at_end(file, tar.offset, size):
            raise _DamageError(f"byte {tar.offset}", reason)
    except _DamageError as problem:
        index.damage.append(problem.damage)
        return None
    return _after_zeros(file.fileno(), tar.offset)


class _DamageError(Exception):
    """Damage after which nothing of a tar is read."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(place, problem)
        self.damage = place, problem


def _next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """Reads the next header; None at the end of the archive."""
    try:
        return tar.next()
    except tarfile.ReadError as problem:
        raise _DamageError(f"byte {tar.offset}", f"{problem}; the file is cut off here") from None
    except (*ABSURD_NUMBERS, OSError) as problem:
        if isinstance(problem, OSError) and problem.errno != errno.EINVAL:  # of seeking; others are the disk's
            raise
        raise _DamageError(f"byte {tar.offset}", "no tar header; nothing after it is read") from None


def _place(member: tarfile.TarInfo) -> str:
    return f"byte {member.offset}, {member.name}"


def _add_member(member: tarfile.TarInfo, last: int, index: Index, links: dict[int, Link]) -> None:
    """Adds a member, a link or damage; `last` is the last offset at which its content can begin."""
    if member.islnk() or member.issym():
        folder = "" if member.islnk() else posixpath.dirname(member.name)
        target = posixpath.normpath(posixpath.join(folder, member.linkname))
        links[len(index.members)] = Link(target, member.islnk())
    elif not member.isfile():
        if not member.isdir():
            index.damage.append((_place(member), "not a file"))
        return
    elif member.offset_data > last:
        raise _DamageError(_place(member), "is cut off; nothing after it is read")
    elif member.sparse is not None:
        index.holes[member.offset_data] = member.sparse  # type: ignore[assignment]  # typed as bytes
    index.members.append((member.name, member.offset_data, member.size))


def _resolve_links(index: Index, links: dict[int, Link], begin: int) -> None:
    """Gives the links of an archive the content of the members that they name; other links become damage.

    A hard link names the last member of that name before it, if there is one; every other link the last one.

    Args:
        begin: position in `index.members` of the archive's first member. Names count within their own archive, since
            joined archives have equal ones.
    """
    if not links:
        return
    contents: dict[str, tuple[int, int]] = {}
    open_links: dict[int, Link] = {}
    for position, (name, *content) in enumerate(index.members[begin:], begin):
        link = links.get(position)
        if link is None or (link.is_hard and link.target in contents):
            offset, size = contents[link.target] if link else content
            index.members[position] = name, offset, size
            contents[posixpath.normpath(name)] = offset, size
        else:
            open_links[position] = link
    names = {posixpath.normpath(index.members[position][0]): link.target for position, link in open_links.items()}
    broken = set()
    for position, link in open_links.items():
        name, target, steps = index.members[position][0], link.target, 0
        while target in names and target not in contents and steps < len(names):
            target, steps = names[target], steps + 1
        if target in contents:
            index.members[position] = name, *contents[target]
        else:
            broken.add(position)
            index.damage.append((f"member {name}", f"a link to {link.target}, which is not in the tar"))
    index.members[:] = [member for position, member in enumerate(index.members) if position not in broken]


def _damage_at_end(file: BinaryIO, at: int, size: int) -> str | None:
    """Describes the damage at the end that `tarfile` reports; it takes a broken header for the end, too."""
    if at >= size:
        return "the file is cut off: it ends before its end-of-archive mark"
    file.seek(at)
    return "no tar header; nothing after it is read" if any(file.read(BLOCK)) else None
