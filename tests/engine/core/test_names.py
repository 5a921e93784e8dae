"""Names from the input as names of members and as text."""

from __future__ import annotations

import os
import random
from pathlib import PurePosixPath

import pytest

from danqing.engine.core.names import MAX_PART_BYTES, member_name, readable_name, unique_key


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("000001234", "000001234"),
        ("图/猫", "图/猫"),
        ("a b", "a b"),
        ("v1.0", "v1%2E0"),
        ("v1.d/x", "v1.d/x"),
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/./passwd", "etc/passwd"),
        ("..", "_"),
        ("..\\..\\x", "%2E%2E%5C%2E%2E%5Cx"),
        ("C:x", "C%3Ax"),
        ("a\x00b\n", "a%00b%0A"),
        ("\ud83d", "%ED%A0%BD"),
    ],
)
def test_a_key_becomes_a_name_that_stays_in_its_folder(key: str, name: str) -> None:
    assert member_name(key) == name


def test_no_name_is_too_long_or_a_path_of_its_own() -> None:
    chance = random.Random(0)
    for _ in range(3000):
        key = "".join(chance.choice("a图.\\/:\x00\x1b\ud800 %") for _ in range(chance.choice((1, 5, 90, 400))))
        name = member_name(key)
        parts = PurePosixPath(name).parts
        assert "/".join(parts) == name and not {"..", "/"} & set(parts) and "." not in parts[-1]
        assert max(len(part.encode()) for part in parts) <= MAX_PART_BYTES
    assert member_name("图" * 300) != member_name("图" * 301)
    assert len(member_name("𠀀" * 60).encode()) <= MAX_PART_BYTES


def test_names_that_are_not_utf8_become_text() -> None:
    assert readable_name(os.fsdecode("小狗".encode("gbk"))) == "小狗"
    assert readable_name(os.fsdecode(b"a\xff")) == "a\\udcff" and readable_name("小狗") == "小狗"


def test_keys_with_equal_member_names_are_numbered() -> None:
    taken: dict[str, int] = {}
    keys = [unique_key(key, taken) for key in ("k.1", "k%2E1", "", ".", "图" * 300, "图" * 300, "a/", "a")]
    assert keys == ["k.1", "k%2E1_1", "", "._1", "图" * 300, "图" * 300 + "_1", "a/", "a_1"]
    assert len({member_name(key) for key in keys}) == len(keys)
