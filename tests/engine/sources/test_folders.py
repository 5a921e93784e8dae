"""Folders: links, pipes, nested tables, and names that are no UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danqing.engine.core.damage import Damage
from danqing.engine.core.errors import DanqingError
from danqing.engine.sources import Layout, Sample, find_shards, open_shard
from tests.conftest import picture

FOLLOWING = Layout(follow_links=True)


def pair(folder: Path, name: str, caption: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jpg").write_bytes(picture(1))
    (folder / f"{name}.txt").write_text(caption or name, encoding="utf-8")


def read(path: Path, layout: Layout | None = None) -> tuple[dict[str, Sample], list[Damage]]:
    damage: list[Damage] = []
    shards = find_shards([str(path)], layout, damage)
    samples = [sample for shard in shards for sample in open_shard(shard, layout or Layout())]
    return {sample.key: sample for sample in samples}, damage


def test_links_are_read_inside_the_folder_and_named_outside(tmp_path: Path) -> None:
    pair(tmp_path / "out", "secret")
    folder = tmp_path / "in"
    pair(folder / "sub", "a")
    (folder / "inside.jpg").symlink_to("sub/a.jpg")
    (folder / "outside.jpg").symlink_to("../out/secret.jpg")
    (folder / "caption.jpg").write_bytes(picture(2))
    (folder / "caption.txt").symlink_to(tmp_path / "out" / "secret.txt")
    (folder / "gone.jpg").symlink_to("nothing.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "again").symlink_to("sub")
    (folder / "there").symlink_to("../out")
    (folder / "sub" / "up").symlink_to("..")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    found, damage = read(folder)
    errors = {key: sample.error for key, sample in found.items() if sample.error}
    assert set(found) - set(errors) == {"sub/a", "inside"}
    assert set(errors) == {"outside", "caption", "gone", "loop", "pipe", "device"}
    for key in ("outside", "caption", "device"):
        assert "outside the input's folder; --follow-links" in str(errors[key])
    assert found["caption"].caption == "" and found["outside"].image == b""
    assert "No such file" in str(errors["gone"]) and "not a file" in str(errors["pipe"])
    assert [entry.file for entry in damage] == [str(folder / "there")]
    found, damage = read(folder, FOLLOWING)
    errors = {key: sample.error for key, sample in found.items() if sample.error}
    assert set(errors) == {"gone", "loop", "pipe", "device"} and "not a file" in str(errors["device"])
    assert found["caption"].caption == "secret" and found["there/secret"].image and not damage


def test_shards_that_are_links_are_named(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "x").write_bytes(bytes(10240))
    (tmp_path / "in").mkdir()
    for name in ("0.tar", "1.tar"):
        (tmp_path / "in" / name).symlink_to("../blobs/x" if name == "0.tar" else "gone")
    damage: list[Damage] = []
    with pytest.raises(DanqingError, match=r"0\.tar: a link to a file outside the input's folder; --follow-links"):
        find_shards([str(tmp_path / "in")], Layout(), damage)
    assert [shard.name for shard in find_shards([str(tmp_path / "in")], FOLLOWING, damage)] == ["0"]
    assert "1.tar: a link to a file that does not exist" in str(damage[-1])


def test_tables_read_no_file_outside_their_folder(tmp_path: Path) -> None:
    pair(tmp_path / "out", "secret")
    folder = tmp_path / "in"
    pair(folder / "sub", "a")
    (folder / "link").symlink_to("../out")
    names = ["sub/a.jpg", "../out/secret.jpg", f"{tmp_path}/out/secret.jpg", "link/secret.jpg", "sub/../sub/a.jpg"]
    names += ["", ".", "..", "/", "a\0b", "sub", f"{folder}/sub/a.jpg"]
    pq.write_table(pa.table({"file_name": names, "text": ["t"] * len(names)}), folder / "t.parquet")
    (shard,) = find_shards([str(folder / "t.parquet")])
    found = list(open_shard(shard, Layout()))
    assert [bool(sample.image) for sample in found] == [True, False, False, False, True, *[False] * 6, True]
    assert ["--follow-links" in str(sample.error) for sample in found[1:4]] == [True] * 3
    assert all(sample.error for sample in found[6:11]) and len({sample.key for sample in found}) == len(found)
    assert [bool(s.image) for s in open_shard(shard, FOLLOWING)] == [True] * 5 + [False] * 6 + [True]


def test_metadata_tables_of_subfolders_are_used(tmp_path: Path) -> None:
    for split, table in (("test", "metadata.jsonl"), ("train/a", "metadata.csv")):
        (tmp_path / split).mkdir(parents=True)
        (tmp_path / split / "0.jpg").write_bytes(picture(1))
        line = f'{{"file_name": "0.jpg", "text": "{split}"}}\n'
        csv = f"file_name,text\n0.jpg,{split}\n"
        (tmp_path / split / table).write_text(line if table.endswith("jsonl") else csv)
    pair(tmp_path / "more", "b")
    (tmp_path / "more" / "00000.tar").write_bytes(b"")
    damage: list[Damage] = []
    shards = find_shards([str(tmp_path)], Layout(), damage)
    captions = [sample.caption for shard in shards for sample in open_shard(shard, Layout())]
    assert captions == ["test", "train/a", "b"] and [shard.path for shard in shards][2] == tmp_path
    assert [entry.file for entry in damage] == [str(tmp_path / "more" / "00000.tar")]


def test_names_of_files_in_gbk_become_keys(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    stem = os.fsdecode("小狗".encode("gbk"))
    (tmp_path / "d" / f"{stem}.jpg").write_bytes(picture(1))
    (tmp_path / "d" / f"{stem}.txt").write_text("小狗", encoding="utf-8")
    found, _ = read(tmp_path / "d")
    assert found["小狗"].caption == "小狗" and found["小狗"].image == picture(1)


def test_names_with_brackets_and_braces_are_names_first(tmp_path: Path) -> None:
    for name in ("x[1].tar", "y{1,2}.tar", "z1.tar"):
        (tmp_path / name).write_bytes(bytes(10240))
    for name in ("x[1].tar", "y{1,2}.tar"):
        assert [shard.path.name for shard in find_shards([str(tmp_path / name)])] == [name]
    assert [shard.path.name for shard in find_shards([str(tmp_path / "z[0-9].tar")])] == ["z1.tar"]


def test_heic_counts_only_where_nothing_else_can_be_read(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    (tmp_path / "a.heic").write_bytes(b"x")
    (tmp_path / "b.heic").write_bytes(b"x")
    (tmp_path / "c.jfif").write_bytes(picture(3))
    found, _ = read(tmp_path)
    assert {key: bool(sample.image) for key, sample in found.items()} == {"a": True, "b": False, "c": True}
    assert "a .heic cannot be read" in str(found["b"].error)


def test_extensions_that_differ_in_case_are_files_of_their_own(tmp_path: Path) -> None:
    contents = {"a.JPG": b"upper", "a.jpg": b"lower", "a.TXT": b"LOUD", "a.txt": b"quiet", "b.JPG": b"b", "b.txt": b"b"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found, _ = read(tmp_path)
    assert {key: (sample.image, sample.caption) for key, sample in found.items()} == {
        "a.JPG": (b"upper", "LOUD"), "a.jpg": (b"lower", "quiet"), "b": (b"b", "b"),
    }  # fmt: skip
