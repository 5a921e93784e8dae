"""Tars of every kind: each pair that a tool can see is a row with a key of its own, or is named as damage."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danqing.engine.core.errors import DanqingError
from danqing.engine.sources import Layout, Source, check_parts, find_shards, open_shard, sample
from tests.conftest import picture

Make = Callable[..., Path]
Members = list[tuple[str, bytes | str]]


def tar_of(path: Path, members: Members) -> Path:
    """A tar whose members may have equal names; `->` and a name is a symbolic link, `=>` and a name a hard one."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str) and content[:2] in ("->", "=>"):
                info.type, info.linkname = tarfile.SYMTYPE if content[0] == "-" else tarfile.LNKTYPE, content[2:]
                tar.addfile(info)
                continue
            data = content.encode() if isinstance(content, str) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def opened(path: Path, layout: Layout | None = None) -> Source:
    (shard,) = find_shards([str(path)], layout)
    return open_shard(shard, layout or Layout())


def rows(source: Source) -> list[tuple[str, bytes, str]]:
    return [(row.key, row.image, row.caption) for row in source]


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["a.jpg", "a.txt", "b.jpg", "b.txt"], ["a", "b"]),
        (["v1.0.jpg", "v1.0.txt", "v1.1.jpg", "v1.1.txt"], ["v1.0", "v1.1"]),
        (["v1.0.jpg", "w.jpg", "v1.1.jpg", "v1.0.txt"], ["v1.0", "w", "v1.1"]),
        (["v1.jpg", "v1.txt", "v1.0.jpg", "v1.0.txt"], ["v1", "v1.0"]),
        (["a.jpg", "a.seg.png", "a.txt"], ["a"]),
        (["d.1/a.jpg", "d.1/a.txt", "d.2/a.jpg"], ["d.1/a", "d.2/a"]),
        (["._a.jpg", "a.jpg", ".DS_Store", "README", "x/README.md", "__MACOSX/._a.jpg", "a.cls"], ["a"]),
        (["a.jpg", "a.txt", "a.jpg", "a.txt"], ["a", "a_1"]),
        (["a.jpg", "a.jpg", "a_1.jpg", "a.jpg"], ["a", "a_1", "a_1_1", "a_2"]),
        (["a.jpg", "./a.jpg", "x/../y.jpg", "x/y.jpg"], ["a", "./a_1", "x/../y", "x/y_1"]),
        (["A.JPG", "A.TXT"], ["A"]),
    ],
)
def test_keys_of_a_tar(tmp_path: Path, names: list[str], keys: list[str]) -> None:
    members: Members = [(name, f"{number}") for number, name in enumerate(names)]
    found = list(opened(tar_of(tmp_path / "a.tar", members)))
    assert [row.key for row in found] == keys


def test_a_key_that_comes_twice_keeps_its_own_picture_and_caption(tmp_path: Path) -> None:
    members: Members = [(f"a.{kind}", f"{number}{kind}") for number in range(3) for kind in ("jpg", "txt")]
    found = list(opened(tar_of(tmp_path / "a.tar", members)))
    assert [(row.key, row.image, row.caption, row.input_key) for row in found] == [
        ("a", b"0jpg", "0txt", None),
        ("a_1", b"1jpg", "1txt", "a"),
        ("a_2", b"2jpg", "2txt", "a"),
    ]


def test_joined_archives_are_read_to_the_end(tmp_path: Path) -> None:
    parts = [
        tar_of(tmp_path / f"{n}.tar", [(f"{n}.jpg", f"{n}"), (f"{n}.txt", f"t{n}")]).read_bytes() for n in range(3)
    ]
    path = tmp_path / "joined.tar"
    path.write_bytes(b"".join(parts))
    assert rows(opened(path)) == [(f"{n}", b"%d" % n, f"t{n}") for n in range(3)]
    path.write_bytes(parts[0] + parts[1] + b"garbage" * 200)
    source = opened(path)
    assert len(source) == 2 and source.damage[0].place == f"byte {len(parts[0] + parts[1])}"


def test_links_have_the_content_of_the_member_that_they_name(tmp_path: Path) -> None:
    members: Members = [
        ("x/0.jpg", "picture"), ("x/0.txt", "zero"), ("1.jpg", "=>x/0.jpg"), ("1.txt", "one"),
        ("x/2.jpg", "->0.jpg"), ("x/2.txt", "two"), ("x/3.jpg", "->2.jpg"),
        ("4.jpg", "->/etc/passwd"), ("4.txt", "four"), ("5.jpg", "->5.jpg"), ("6.jpg", "=>7.jpg"), ("7.jpg", "seven"),
    ]  # fmt: skip
    source = opened(tar_of(tmp_path / "a.tar", members))
    assert rows(source) == [
        ("x/0", b"picture", "zero"), ("1", b"picture", "one"), ("x/2", b"picture", "two"), ("x/3", b"picture", ""),
        ("4", b"", "four"), ("6", b"seven", ""), ("7", b"seven", ""),
    ]  # fmt: skip
    assert [(entry.place, entry.problem) for entry in source.damage] == [
        ("member 4.jpg", "a link to /etc/passwd, which is not in the tar"),
        ("member 5.jpg", "a link to 5.jpg, which is not in the tar"),
    ]


def test_links_name_members_of_their_own_archive(tmp_path: Path) -> None:
    archives: list[Members] = [
        [("0.jpg", "old"), ("1.jpg", "=>0.jpg"), ("0.jpg", "new"), ("2.jpg", "=>0.jpg"), ("3.jpg", "->0.jpg")],
        [("4.jpg", "->0.jpg"), ("0.jpg", "other"), ("5.jpg", "=>0.jpg")],
    ]
    parts = [tar_of(tmp_path / f"{n}.tar", members).read_bytes() for n, members in enumerate(archives)]
    (tmp_path / "joined.tar").write_bytes(b"".join(parts))
    assert [(key, image) for key, image, _ in rows(opened(tmp_path / "joined.tar"))] == [
        ("0", b"old"), ("1", b"old"), ("0_1", b"new"), ("2", b"new"), ("3", b"new"),
        ("4", b"other"), ("0_2", b"other"), ("5", b"other"),
    ]  # fmt: skip


@pytest.mark.skipif(not shutil.which("tar"), reason="GNU tar makes sparse members")
@pytest.mark.parametrize("form", ["gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix"])
def test_sparse_members_are_expanded(tmp_path: Path, form: str) -> None:
    content = {}
    for number in range(2):
        with (tmp_path / f"{number}.bmp").open("wb") as file:
            file.write(picture(number))
            file.seek(1 << 20)
            file.write(b"middle")
            file.truncate(3 << 20)
        content[number] = (tmp_path / f"{number}.bmp").read_bytes()
        (tmp_path / f"{number}.txt").write_text(f"{number}")
    command = ["tar", "--sparse", "--format", *form.split(), "-cf", "a.tar", "0.bmp", "0.txt", "1.bmp", "1.txt"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=240)
    source = opened(tmp_path / "a.tar")
    assert (tmp_path / "a.tar").stat().st_size < 1 << 20 and not source.damage
    assert rows(source) == [("0", content[0], "0"), ("1", content[1], "1")]


def test_damage_names_the_byte_and_what_is_read(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [(f"{n}.{kind}", "x" * 2000) for n in range(4) for kind in ("jpg", "txt")])
    path.write_bytes(path.read_bytes()[:7000])
    source = opened(path)
    assert [row.key for row in source] == ["0"]
    assert [str(entry) for entry in source.damage] == [
        f"{path}, byte 5120, 1.jpg: is cut off; nothing after it is read"
    ]


def test_large_members_fail_their_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_PICTURE_BYTES", "MAX_CAPTION_BYTES", "MAX_METADATA_BYTES"):
        monkeypatch.setattr(sample, name, 1000)
    big = "x" * 1001
    members: Members = [
        ("a.jpg", "j"), ("a.txt", big), ("b.jpg", big), ("b.txt", "t"), ("c.jpg", "j"), ("c.json", json.dumps(big)),
        ("d.jpg", "j" * 1000), ("d.txt", "t"),
    ]  # fmt: skip
    errors = [row.error for row in opened(tar_of(tmp_path / "a.tar", members))]
    assert errors[0] == ".txt: 1,001 bytes; at most 1,000 are read" and errors[3] is None
    assert errors[1] == ".jpg: 1,001 bytes; at most 1,000 are read" and str(errors[2]).startswith(".json: 1,003 bytes")


def test_pictures_that_no_decoder_reads_are_errors_in_words(make_shard: Make) -> None:
    source = opened(make_shard({"a.heic": b"x", "a.txt": "t", "b.jfif": picture(1), "b.txt": "t", "c.svg": "<svg>"}))
    assert [str(row.error) for row in source] == [
        "a .heic cannot be read; convert it to JPEG, PNG or WebP first",
        "None",
        "a .svg cannot be read; convert it to JPEG, PNG or WebP first",
    ]


def test_failed_downloads_of_img2dataset_are_rows(make_shard: Make) -> None:
    path = make_shard({"000000001.jpg": b"x", "000000001.txt": "一", "000000001.json": {"status": "success"}})
    table = {
        "key": ["000000000", "000000001", "000000002", "000000003"],
        "url": ["u0", "u1", "u2", "u3"],
        "caption": ["零", "一", "二", None],
        "status": ["failed_to_download", "success", "failed_to_resize", "failed_to_download"],
        "error_message": ["HTTP Error 404", None, "too small", "timeout"],
    }
    pq.write_table(pa.table(table), path.with_suffix(".parquet"))
    source = opened(path)
    found = list(source)
    assert len(source) == 4 and [row.key for row in found] == ["000000001", "000000000", "000000002", "000000003"]
    assert [row.caption for row in found] == ["一", "零", "二", ""] and [row.error for row in found] == [None] * 4
    assert found[1].metadata["error_message"] == "HTTP Error 404" and found[1].metadata["url"] == "u0"
    assert [bool(row.image) for row in found] == [True, False, False, False]
    pq.write_table(pa.table({"key": ["k"], "status": ["failed"]}), path.with_suffix(".parquet"))  # somebody else's
    assert len(opened(path)) == 1
    path.with_suffix(".parquet").write_bytes(b"broken")
    assert len(opened(path)) == 1


def test_names_that_no_row_has_are_refused(make_shard: Make, tmp_path: Path) -> None:
    path = make_shard({"a.jpg": b"x", "a.txt": "t", "a.json": {"alt": "in json"}, "b.jpg": b"x", "b.txt": "t"})
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    (folder / "a.txt").write_text("t")
    caption, image = Layout(caption_keys=("foo",)), Layout(image_keys=("foo", "bar"))
    for place, wrong in ((path, caption), (path, image), (folder, caption)):
        with pytest.raises(DanqingError, match=r"no row has a member 'foo'.*; members are jpg, txt"):
            check_parts(find_shards([str(place)], wrong), wrong)
    with pytest.raises(DanqingError, match=r"a folder without .*; it has jpg, txt files"):
        find_shards([str(folder)], image)
    for right in (Layout(caption_keys=("alt",)), Layout(("jpg",), ("txt",))):
        check_parts(find_shards([str(path)], right), right)
    check_parts(find_shards([str(folder)], Layout(("jpg",))), Layout(("jpg",), ("foo",)), captions=False)
