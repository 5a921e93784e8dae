"""Sample: one pair as it is in the input, for every kind of input."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from danqing.engine.core.carried import uid_of
from danqing.engine.core.columns import METADATA_ERROR, READ_ERROR
from danqing.engine.core.errors import DanqingError


@dataclass(frozen=True)
class Layout:
    """Which of a sample's parts are its picture and its caption: the first name that the sample has.

    The names are extensions of a shard's members, fields of a .json beside them, or columns of a table.

    >>> Layout(caption_keys=("alt",)).caption_extensions
    ('alt',)
    """

    image_keys: tuple[str, ...] = (
        "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "image", "file_name",
    )  # fmt: skip
    caption_keys: tuple[str, ...] = ("txt", "text", "caption", "alt_text")

    @cached_property
    def image_extensions(self) -> tuple[str, ...]:
        """`image_keys` in lower case; the case of members' extensions is ignored."""
        return tuple(map(str.lower, self.image_keys))

    @cached_property
    def caption_extensions(self) -> tuple[str, ...]:
        """`caption_keys` in lower case."""
        return tuple(map(str.lower, self.caption_keys))


@dataclass
class Sample:
    """One pair.

    Attributes:
        key: the input's key.
        image: encoded bytes of the picture; empty if it is missing.
        image_extension: extension of the picture's file, `jpg`; empty if it has none.
        caption: empty if it is missing.
        metadata: the input's other fields.
    """

    key: str
    image: bytes
    image_extension: str
    caption: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _image_digest(self) -> xxhash.xxh128:
        return xxhash.xxh128(self.image)

    @property
    def image_hash(self) -> str:
        """xxh128 of the picture's bytes, 32 hex digits."""
        return self._image_digest.hexdigest()

    @property
    def uid(self) -> str:
        """32 hex digits, as DataComp's uids: the input's own `uid`, else xxh128 of picture bytes and caption."""
        if own := uid_of(self.metadata.get("uid")):
            return own
        digest = self._image_digest.copy()
        digest.update(self.caption.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def from_members(key: str, members: Container[str], read: Callable[[str], bytes], layout: Layout) -> Sample:
    """Makes a sample of files: the picture, its caption (.txt) and its metadata (.json).

    Args:
        key: the sample's key.
        members: extensions of the sample's files, in lower case.
        read: extension → content of the file.
        layout: which extensions are the picture and the caption; without a caption file, which field of the .json.

    >>> files = {"jpg": b"...", "json": b'{"caption": "a cat"}'}
    >>> from_members("000", files, files.__getitem__, Layout()).caption
    'a cat'
    """
    metadata = _metadata(read("json")) if "json" in members else {}
    image = next((k for k in layout.image_extensions if k in members), None)
    text = next((k for k in layout.caption_extensions if k in members), None)
    if text is not None:
        caption = read(text).decode("utf-8", "replace")
    else:
        caption = next((metadata[k] for k in layout.caption_keys if isinstance(metadata.get(k), str)), "")
    return Sample(key, read(image) if image else b"", image or "", caption, metadata)


def _metadata(data: bytes) -> dict[str, Any]:
    """Reads a sample's .json; `metadata_error` says why one cannot be read."""
    if not data:
        return {}
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as problem:
        return {METADATA_ERROR: f"not valid JSON: {problem}"}
    return content if isinstance(content, dict) else {METADATA_ERROR: f"a JSON {type(content).__name__}, not an object"}


def from_record(record: Mapping[str, Any], image: str, caption: str, folder: Path, key: str) -> Sample:
    """Makes a sample of a row of a table.

    Args:
        record: column → value; the columns beside `image` and `caption` become metadata, unless they hold bytes.
        image: column of the picture: its bytes, Hugging Face's `{bytes, path}`, or a file's name relative to `folder`.
        caption: column of the caption.
        folder: folder of the table.
        key: the sample's key if the row has none of its own (`key`, `__key__`, or the name of the picture's file).
    """
    metadata = {k: v for k, v in record.items() if k not in (image, caption) and not _holds_bytes(v)}
    picture, text = record.get(image), record.get(caption)
    data, name = (picture.get("bytes"), picture.get("path")) if isinstance(picture, dict) else (picture, None)
    problem = None
    if isinstance(data, str) or (data is None and isinstance(name, str)):
        name = data or name
        data, problem = _read_picture(folder, str(name))
        key = str(Path(str(name)).with_suffix(""))
    if text is not None and not isinstance(text, str):
        problem = f"{caption!r} is not text but {str(text)[:40]}"
    if problem:
        metadata[READ_ERROR] = problem
    own = next((record[k] for k in ("key", "__key__") if isinstance(record.get(k), str)), None)
    extension = Path(name).suffix[1:].lower() if isinstance(name, str) else ""
    image_bytes = data if isinstance(data, bytes) else b""
    return Sample(own or key, image_bytes, extension, text if isinstance(text, str) else "", metadata)


def _holds_bytes(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and any(map(_holds_bytes, value.values())))


def _read_picture(folder: Path, name: str) -> tuple[bytes, str | None]:
    """Returns the content of a file and None, or no bytes and the problem."""
    if "://" in name:
        return b"", f"{name[:200]} is a URL: download first (`danqing select`, then img2dataset)"
    path = folder / name
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device need not end
            return b"", f"{path}: not a file"
        return path.read_bytes(), None
    except (OSError, ValueError) as problem:
        return b"", f"{path}: {getattr(problem, 'strerror', None) or problem}"


def choose_column(path: Path, names: list[str], wanted: Iterable[str], what: str, flag: str) -> str:
    """Returns the first wanted column that the table has.

    Args:
        path: the table, for error messages.
        names: the table's columns.
        wanted: the columns to look for, in order of preference.
        what: what the column holds, `picture` or `caption`.
        flag: the flag that chooses another column.

    Raises:
        DanqingError: the table has none of the columns, or has one twice; lists its columns and names the flag.
    """
    wanted = list(wanted)
    found = next((name for name in wanted if name in names), None)
    if found is not None and names.count(found) == 1:
        return found
    if found is not None:
        raise DanqingError(f"{path}: has {names.count(found)} columns {found!r}; choose another with {flag}")
    hint = " For a table of URLs: `danqing select`, then img2dataset." if what == "picture" and "url" in names else ""
    raise DanqingError(
        f"{path}: no column for the {what} (looked for {', '.join(wanted)}). The table has: "
        f"{', '.join(names) or 'no columns'}. Choose with {flag}.{hint}"
    )
