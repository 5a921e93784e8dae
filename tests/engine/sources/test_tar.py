"""Our index of plain tars: whenever it returns members, they equal those of `tarfile`."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from danqing.engine.core.errors import DanqingError
from danqing.engine.sources import Layout, find_shards, open_shard
from danqing.engine.sources import tar as walks
from danqing.engine.sources.tar import BLOCK, read_members, walk_plain, walk_tarfile

Change = Callable[[tarfile.TarInfo], None]


def tar_of(
    *names: str, kind: int = tarfile.USTAR_FORMAT, change: Change | None = None, size: int = 700, tail: bytes = b""
) -> bytes:
    """A tar of regular files; `change` alters the header of the second."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = size + number
            if change and number == 1:
                change(member)
            tar.addfile(member, io.BytesIO(bytes([65 + number % 26]) * member.size) if member.isreg() else None)
    return buffer.getvalue() + tail


def setting(**fields: object) -> Change:
    def change(member: tarfile.TarInfo) -> None:
        for name, value in fields.items():
            setattr(member, name, value)

    return change


def edited(data: bytes, at: int, new: bytes, sign: bool = True) -> bytes:
    """The tar with other bytes in its second header; `sign` corrects the checksum."""
    header = bytearray(data[1536:2048])
    header[at : at + len(new)] = new
    if sign:
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return data[:1536] + bytes(header) + data[2048:]


NAMES = ("a.jpg", "a.txt", "dir/b.JPG", "dir/b.tar.gz", "图.jpg", "n" * 100)
WEBDATASET = tar_of(*NAMES[:4], kind=tarfile.PAX_FORMAT, change=setting(mtime=1700000000.25))
USTAR = tar_of(*NAMES)

PLAIN = {
    "ustar": USTAR,
    "gnu": tar_of(*NAMES, kind=tarfile.GNU_FORMAT),
    "pax with a time": WEBDATASET,
    "old type": tar_of(*NAMES, change=setting(type=tarfile.AREGTYPE)),
    "folder": tar_of(*NAMES, change=setting(type=tarfile.DIRTYPE)),
    "one key twice": tar_of("a.jpg", "a.jpg", "a.txt"),
    "empty files": tar_of("a.jpg", "b.jpg", size=0),
    "no members": tar_of(),
    "joined archives": USTAR + tar_of("z.jpg"),
    "joined archives with padding": USTAR + bytes(5 * BLOCK) + tar_of("z.jpg") + bytes(BLOCK),
    "name that is not UTF-8": edited(USTAR, 0, b"\xff\xfe.txt"),
    "a prefix that begins with NUL": edited(USTAR, 345, b"\0x"),
    "read in windows": tar_of(*(f"{n}.txt" for n in range(40)), size=1),
}
OTHERS = {
    "pax with a long name": tar_of("a.jpg", "l" * 200 + ".txt", "b.jpg", kind=tarfile.PAX_FORMAT),
    "gnu with a long name": tar_of("a.jpg", "l" * 200 + ".txt", "b.jpg", kind=tarfile.GNU_FORMAT),
    "ustar with a prefix": tar_of("a.jpg", "d" * 90 + "/" + "l" * 90 + ".txt", "b.jpg"),
    "pax of all files": tar_of(*NAMES[:4], kind=tarfile.PAX_FORMAT, change=setting(pax_headers={"path": "z.txt"})),
    "pax of a size": tar_of(*NAMES[:4], kind=tarfile.PAX_FORMAT, change=setting(pax_headers={"size": "5"})),
    "hard link": tar_of("a.jpg", "b.jpg", "c.jpg", change=setting(type=tarfile.LNKTYPE, linkname="a.jpg", size=0)),
    "symbolic link": tar_of("a.jpg", "b.jpg", "c.jpg", change=setting(type=tarfile.SYMTYPE, linkname="a.jpg", size=0)),
    "pipe": tar_of("a.jpg", "b.jpg", "c.jpg", change=setting(type=tarfile.FIFOTYPE, size=0)),
    "sparse": edited(USTAR, 156, b"S"),
    "contiguous": edited(USTAR, 156, b"7"),
    "unknown type": edited(USTAR, 156, b"Q"),
    "old folder": edited(edited(USTAR, 156, b"\0"), 0, b"folder/\0"),
    "no name": edited(USTAR, 0, bytes(100)),
    "wrong checksum": edited(USTAR, 0, b"b", sign=False),
    "checksum of signed characters": edited(USTAR, 148, b"%06o\0 " % 1, sign=False),
    "size in base 256": edited(USTAR, 124, b"\x80" + (701).to_bytes(11, "big")),
    "short size": edited(USTAR, 124, b"1275\0" + bytes(7)),
    "spaces before the size": edited(USTAR, 124, b"       1275\0"),
    "size that is no number": edited(USTAR, 124, b"xyz"),
    "size with an underscore": edited(USTAR, 124, b"0000000_275"),
    "twelve digits of size": edited(USTAR, 124, b"000000001275"),
    "size beyond the file": edited(USTAR, 124, b"00077777777"),
    "mode that is no number": edited(USTAR, 100, b"rw-r--r"),
    "user that is no number": edited(USTAR, 108, b"0 0"),
    "device that is no number": edited(USTAR, 329, b"9"),
    "garbage behind the end": tar_of(*NAMES, tail=b"garbage" * 999),
    "joined archives, the second cut": USTAR + USTAR[:2000],
    "no end": USTAR[: USTAR.rindex(b"F") + 300],
    "a file of zeros": bytes(400),
    "empty": b"",
    "text": b"no tar at all" * 100,
    "tail of a pax header": WEBDATASET[: WEBDATASET.index(b"mtime=")] + bytes(4096),
}


def outcome(function: Callable[[Path], object], path: Path) -> object:
    try:
        return function(path)
    except tarfile.TarError as problem:
        return str(problem)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_tars_are_walked(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(PLAIN[name])
    assert walk_plain(path) == walk_tarfile(path).members and not walk_tarfile(path).damage


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_left_to_tarfile(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(OTHERS[name])
    assert walk_plain(path) is None
    assert outcome(read_members, path) == outcome(walk_tarfile, path)


def test_a_cut_tar_is_read_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for data in (PLAIN["ustar"], WEBDATASET):
        for cut in [*range(0, len(data), 97), *range(0, len(data), BLOCK)]:
            path.write_bytes(data[:cut])
            assert outcome(read_members, path) == outcome(walk_tarfile, path)


def test_changed_tars_are_read_as_tarfile_reads_them(tmp_path: Path) -> None:
    """Changes one or two bytes of a header, mostly with a corrected checksum."""
    path, chance = tmp_path / "a.tar", random.Random(0)
    seeds = [*PLAIN.values()] * 4 + [*OTHERS.values()]
    walked = 0
    for _ in range(1500):
        data = bytearray(chance.choice(seeds))
        heads = [at for at in range(0, len(data) - BLOCK, BLOCK) if data[at + 257 : at + 262] == b"ustar"]
        for _ in range(chance.randint(1, 2)):
            if not heads:
                break
            at = chance.choice(heads)
            fields = (0, 99, 100, 107, 124, 134, 135, 148, 154, 156, 257, 329, 345, chance.randrange(BLOCK))
            data[at + chance.choice(fields)] = chance.choice((0, 32, 48, 49, 55, 56, 120, chance.randrange(256)))
            if chance.random() < 0.8:
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])
        path.write_bytes(data)
        walked += walk_plain(path) is not None
        assert outcome(read_members, path) == outcome(walk_tarfile, path)
    assert walked > 200


@pytest.mark.parametrize(
    "size",
    [b"\xff" * 12, b"\xff" * 10 + b"\xf0\x00", b"\xff" * 9 + b"\xf0\x00\x00", b"\x80" + b"\xff" * 11],
    ids=["-1", "-4 kB", "-1 MB", "huge"],
)
@pytest.mark.parametrize("kind", [b"0", b"x", b"L"], ids=["file", "pax", "long name"])
def test_an_absurd_size_ends_the_tar_and_nothing_else(tmp_path: Path, size: bytes, kind: bytes) -> None:
    path = tmp_path / "absurd.tar"
    path.write_bytes(edited(edited(USTAR, 124, size), 156, kind))
    index = read_members(path)
    assert [name for name, _, _ in index.members] == ["a.jpg"] and index.damage
    path.write_bytes(path.read_bytes()[1536:])  # now the first member's
    try:
        index = read_members(path)
        assert index.members == [] and index.damage
    except tarfile.ReadError:
        pass


def test_many_headers_are_checked_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "CHECKED_TOGETHER", 2)
    path = tmp_path / "a.tar"
    path.write_bytes(USTAR)
    assert walk_plain(path) == walk_tarfile(path).members
    path.write_bytes(edited(USTAR, 0, b"b", sign=False))
    assert walk_plain(path) is None


def test_samples_do_not_depend_on_the_reader_of_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def samples(path: Path) -> object:
        try:
            source = open_shard(find_shards([str(path)])[0], Layout())
        except DanqingError as problem:
            return str(problem)
        return list(source), source.damage

    for number, data in enumerate((PLAIN | OTHERS).values()):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(data)
        ours = samples(path)
        with monkeypatch.context() as without:
            without.setattr(walks, "walk_plain", lambda path: None)
            assert samples(path) == ours
