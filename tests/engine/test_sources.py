from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import DanqingError
from engine.sources import Layout, expand, find_shards, open_shard
from tests.conftest import picture

Make = Callable[..., Path]


def test_brace_ranges_and_lists_expand_as_in_the_shell() -> None:
    assert expand("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand("a{8..10}.tar") == ["a8.tar", "a9.tar", "a10.tar"]
    assert expand("{x,y}/{0..1}.tar") == ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]


def test_members_in_any_order_make_one_row_each(make_shard: Make) -> None:
    path = make_shard(
        {
            "b.txt": "二",
            "a.json": {"url": "https://x.example/a", "extra": [1, 2]},
            "b.webp": picture(2, form="WEBP"),
            "a.jpg": picture(1),
            "dir/c.PNG": picture(3, form="PNG"),
            "a.txt": "一",
        }
    )
    samples = list(open_shard(path, Layout()))
    assert [s.key for s in samples] == ["b", "a", "dir/c"]
    assert [s.caption for s in samples] == ["二", "一", ""]
    assert [s.image_extension for s in samples] == ["webp", "jpg", "png"]
    assert samples[1].image == picture(1)
    assert samples[1].metadata == {"url": "https://x.example/a", "extra": [1, 2]}


def test_uid_is_the_inputs_own_or_a_hash_of_the_pair(make_shard: Make) -> None:
    own = "0123456789abcdef0123456789abcdef"
    path = make_shard(
        {"a.jpg": b"x", "a.txt": "t", "a.json": {"uid": own}, "b.jpg": b"x", "b.txt": "t", "c.jpg": b"x", "c.txt": "u"}
    )
    first, second, third = (s.uid for s in open_shard(path, Layout()))
    assert first == own
    assert len(second) == 32 and second != third


def test_keys_can_be_chosen_and_captions_lie_in_json(make_shard: Make) -> None:
    path = make_shard({"a.img": b"x", "a.txt": "old", "a.alt": "new", "b.img": b"y", "b.json": {"alt": "json"}})
    first, second = open_shard(path, Layout(("img",), ("alt",)))
    assert (first.image, first.caption) == (b"x", "new")
    assert second.caption == "json"


def test_bad_metadata_is_carried_as_such(make_shard: Make) -> None:
    samples = list(open_shard(make_shard({"a.json": "{broken", "b.json": "[1]"}), Layout()))
    assert "not valid JSON" in samples[0].metadata["metadata_error"]
    assert samples[1].metadata == {"metadata_error": "a JSON list, not an object"}


def test_a_tar_cut_short_keeps_its_whole_members(make_shard: Make) -> None:
    path = make_shard({f"{i}.jpg": picture(i) for i in range(5)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    shard = open_shard(path, Layout())
    assert shard.damage and 0 < len(shard) < 5
    assert all(s.image == picture(int(s.key)) for s in shard)


def test_a_file_that_is_no_tar_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(DanqingError, match=r"x\.tar: cannot be read as a tar"):
        open_shard(path, Layout())


def test_inputs_are_checked(tmp_path: Path, make_shard: Make) -> None:
    path = make_shard({"a.jpg": b"x"})
    assert [s.name for s in find_shards([str(tmp_path)])] == ["00000"]
    with pytest.raises(DanqingError, match="matches no file"):
        find_shards([str(tmp_path / "*.nothing")])
    with pytest.raises(DanqingError, match="no such file"):
        find_shards([str(tmp_path / "{00000..00001}.tar")])
    with pytest.raises(DanqingError, match="given twice"):
        find_shards([str(path), str(tmp_path)])


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "00000.tar").write_bytes(b"")
    assert [s.name for s in find_shards([str(tmp_path / "{one,two}")])] == ["one/00000", "two/00000"]
