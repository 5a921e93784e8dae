"""Keys and file names of the input: as names inside an archive, unique, and as text."""

from __future__ import annotations

import os
import re

import xxhash

PLAIN = re.compile(r"[\w-]{1,50}")
"""Names that need no change; 50 characters have at most `MAX_PART_BYTES` bytes."""
UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\\:*?"<>|.\ud800-\udfff]')
"""Characters that end a base name, that some file system forbids, or that UTF-8 cannot hold."""
PICTURE_EXTENSION = re.compile("(?!txt$|json$)[0-9a-z]{1,8}")
"""Extensions that a picture keeps; others do not name one, or name the other members of a pair."""
MAX_PART_BYTES = 200
"""Longest part of a member's name; file systems allow 255 bytes with the extension."""


def member_name(key: str) -> str:
    r"""The key as a name inside an archive, without an extension.

    The name stays below the folder that the archive is unpacked in, its base name has no dot, and no part is longer
    than file systems allow. Different keys can get equal names; `unique_key` prevents this.

    >>> member_name("../a/./v1.0"), member_name("C:\\x"), member_name("")
    ('a/v1%2E0', 'C%3A%5Cx', '_')
    """
    if PLAIN.fullmatch(key):
        return key
    *folders, base = [part for part in key.split("/") if part not in ("", ".", "..")] or ["_"]
    parts = [*(_escaped(folder, keep=".") for folder in folders), _escaped(base)]
    return "/".join(map(_shortened, parts))


def unique_key(key: str, taken: dict[str, int]) -> str:
    """Returns a key whose member name no earlier key has: the key, with `_1`, `_2`, … at its end if needed.

    Args:
        key: a key of the input.
        taken: member names of the keys so far → last number that was tried for them; receives the key's name. The
            caller starts with an empty one.

    >>> taken = {}
    >>> [unique_key(key, taken) for key in ("cat", "x/../cat", "cat_1", "cat", "./cat")]
    ['cat', 'x/../cat', 'cat_1', 'cat_2', './cat_3']
    """
    unique, name = key, (base := member_name(key))
    while name in taken:
        taken[base] += 1
        unique = f"{key}_{taken[base]}"
        name = member_name(unique)
    taken[name] = 0
    return unique


def _escaped(part: str, keep: str = "") -> str:
    return UNSAFE.sub(lambda found: found[0] if found[0] == keep else _percent(found[0]), part)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _shortened(part: str) -> str:
    data = part.encode()
    if len(data) <= MAX_PART_BYTES:
        return part
    return f"{data[: MAX_PART_BYTES - 17].decode('utf-8', 'ignore')}-{xxhash.xxh64_hexdigest(data)}"


def readable_name(name: str) -> str:
    r"""A file's name as text: bytes that are not UTF-8 are read as GB18030, else written as `\xNN`.

    >>> readable_name(os.fsdecode("小狗.jpg".encode("gbk")))
    '小狗.jpg'
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(name).decode("gb18030")
        except UnicodeError:
            return name.encode("utf-8", "backslashreplace").decode()
    return name
