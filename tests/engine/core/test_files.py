"""Files that are written concurrently, and damaged JSON files."""

from __future__ import annotations

from pathlib import Path

import pytest

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit, read_json


def test_a_file_can_be_written_concurrently(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with commit(path) as outer:
        outer.write(b"outer")
        with commit(path) as inner:
            inner.write(b"inner")
        assert path.read_bytes() == b"inner"
    assert path.read_bytes() == b"outer" and list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), commit(tmp_path / "file", "w") as file:
        file.write("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"), [(b"{", "cannot be read"), (b"\xff", "cannot be read"), (b"[]", "is not")]
)
def test_damaged_json_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DanqingError, match=f"^{path}: cannot be read: .*; make it again$"):
        read_json(path, "make it again")
    path.write_bytes(content)
    with pytest.raises(DanqingError, match=f"^{path}: {words}.*; make it again$"):
        read_json(path, "make it again")
