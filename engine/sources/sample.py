"""Sample: one pair as it is in the input, for every kind of input."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from danqing.engine.core.carried import uid_of
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.escape import printable, valid_text
from danqing.engine.core.names import PICTURE_EXTENSION
from danqing.engine.sources.files import read_file
from danqing.engine.sources.text import Decoder, SampleError, parse_object

METADATA = "json"
"""Extension of a sample's metadata."""
UNREADABLE = ("heic", "heif", "jxl", "svg", "psd", "cr2", "nef", "arw", "dng")
"""Extensions of pictures that no decoder of the engine reads."""
MAX_PICTURE_BYTES = 256 << 20
"""Largest encoded picture that is read."""
MAX_CAPTION_BYTES = 256 << 10
"""Largest caption that is read."""
MAX_METADATA_BYTES = 4 << 20
"""Largest metadata of a sample that is read."""


@dataclass(frozen=True)
class Layout:
    """Names of the parts that are picture and caption; the first name that a sample has counts.

    The names are extensions of a shard's members, fields of a .json beside them, or columns of a table.

    >>> Layout(caption_keys=("alt",)).caption_extensions
    ('alt',)

    Attributes:
        image_keys: names of the picture, in order of preference.
        caption_keys: names of the caption, in order of preference.
        encoding: encoding of captions, metadata and tables; empty: detected for each text or table.
        follow_links: also read files outside the input's folder that a table or a link names.
    """

    image_keys: tuple[str, ...] = (
        "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "image", "file_name",
        "jfif", "jpe", "jif", "j2k", "jpf", "jpx", "dib", "apng", "ppm", "pgm", "pbm", "pnm", "tga", "avifs", "ico",
    )  # fmt: skip
    caption_keys: tuple[str, ...] = ("txt", "text", "caption", "alt_text")
    encoding: str = ""
    follow_links: bool = False

    @cached_property
    def image_extensions(self) -> tuple[str, ...]:
        """`image_keys` in lower case; the case of members' extensions is ignored."""
        return tuple(map(str.lower, self.image_keys))

    @cached_property
    def caption_extensions(self) -> tuple[str, ...]:
        """`caption_keys` in lower case."""
        return tuple(map(str.lower, self.caption_keys))

    @cached_property
    def known_extensions(self) -> frozenset[str]:
        """Extensions of files that are parts of a sample."""
        return frozenset((*self.image_extensions, *self.caption_extensions, METADATA, *UNREADABLE))

    def largest(self, extension: str) -> int:
        """Size in bytes of the largest file with the extension that is read."""
        if extension == METADATA:
            return MAX_METADATA_BYTES
        return MAX_CAPTION_BYTES if extension in self.caption_extensions else MAX_PICTURE_BYTES


@dataclass
class Sample:
    """One pair.

    Attributes:
        key: the input's key; made unique in its shard by `engine.sources.rows`.
        image: encoded bytes of the picture; empty if it is missing.
        image_extension: extension of the picture's file, `jpg`; empty if it has none.
        caption: empty if it is missing.
        metadata: the input's other fields.
        error: why the sample, or a part of it, could not be read; it becomes the row's `error`.
        input_key: the input's own key where `key` differs from it; set by `engine.sources.rows`.
    """

    key: str
    image: bytes
    image_extension: str
    caption: str
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    input_key: str | None = None

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


def from_members(
    key: str, members: Collection[str], read: Callable[[str], bytes], layout: Layout, decoder: Decoder | None = None
) -> Sample:
    """Makes a sample of files: the picture, its caption (.txt) and its metadata (.json).

    A file that cannot be read or is too large makes the sample's `error`; the other parts are still read.

    Args:
        key: the sample's key.
        members: extensions of the sample's files, in lower case.
        read: extension → content of the file. May raise SampleError or OSError.
        layout: which extensions are the picture and the caption; without a caption file, which field of the .json.
        decoder: decodes caption and metadata; None: one for the layout's encoding.

    >>> files = {"jpg": b"...", "json": b'{"caption": "a cat"}'}
    >>> from_members("000", files, files.__getitem__, Layout()).caption
    'a cat'
    """
    decoder = decoder or Decoder(layout.encoding)
    sample = Sample(key, b"", "", "")
    if METADATA in members:
        try:
            if data := _content(METADATA, read, layout):
                sample.metadata = parse_object(decoder(data))
        except (SampleError, OSError) as problem:
            sample.error = f".json: {problem}"
    text = next((k for k in layout.caption_extensions if k in members), None)
    if text is not None:
        try:
            sample.caption = decoder(_content(text, read, layout))
        except (SampleError, OSError) as problem:
            sample.error = f".{text}: {problem}"
    else:
        own = (sample.metadata[k] for k in layout.caption_keys if isinstance(sample.metadata.get(k), str))
        sample.caption = next(own, "")
    image = next((k for k in layout.image_extensions if k in members), None)
    if image is not None:
        sample.image_extension = image
        try:
            sample.image = _content(image, read, layout)
        except (SampleError, OSError) as problem:
            sample.error = f".{image}: {problem}"
    elif unreadable := next((k for k in UNREADABLE if k in members), None):
        sample.error = f"a .{unreadable} cannot be read; convert it to JPEG, PNG or WebP first"
    return sample


def _content(extension: str, read: Callable[[str], bytes], layout: Layout) -> bytes:
    data = read(extension)
    if len(data) > MAX_CAPTION_BYTES:  # the lowest limit
        check_size(len(data), layout.largest(extension))
    return data


def check_size(size: int, limit: int) -> None:
    """Raises SampleError if a part of a sample is larger than `limit` bytes."""
    if size > limit:
        raise SampleError(f"{size:,} bytes; at most {limit:,} are read")


def from_record(
    record: Mapping[str, Any], image: str, caption: str, folder: Path, key: str, follow_links: bool = False
) -> Sample:
    """Makes a sample of a row of a table.

    Args:
        record: column → value; all columns but `image` and `caption` become metadata, without bytes in them.
        image: column of the picture: its bytes, Hugging Face's `{bytes, path}`, or a file's name relative to `folder`.
        caption: column of the caption.
        folder: folder of the table.
        key: the sample's key if the row has none of its own (`key`, `__key__`, or the name of the picture's file).
        follow_links: also read files outside `folder`.
    """
    sample = Sample(key, b"", "", "")
    fields = {name: _without_bytes(value) for name, value in record.items() if name not in (image, caption)}
    sample.metadata = {name: value for name, value in fields.items() if value is not _BYTES}
    picture, text = record.get(image), record.get(caption)
    data, name = (picture.get("bytes"), picture.get("path")) if isinstance(picture, dict) else (picture, None)
    try:
        if isinstance(data, bytes):
            check_size(len(data), MAX_PICTURE_BYTES)
            sample.image = data
        elif isinstance(name := data or name, str):
            sample.key = _key_of(name) or key
            sample.image = _read_picture(folder, name, follow_links)
        elif name is not None:
            sample.error = f"{image!r} holds no picture but {printable(name)[:40]}"
    except SampleError as problem:
        sample.error = str(problem)
    if isinstance(name, str) and PICTURE_EXTENSION.fullmatch(extension := Path(name).suffix[1:].lower()):
        sample.image_extension = extension
    if isinstance(text, str):
        sample.caption = valid_text(text)
        if len(text.encode("utf-8", "replace")) > MAX_CAPTION_BYTES:
            sample.caption, sample.error = "", f"{caption!r} is longer than {MAX_CAPTION_BYTES:,} bytes"
    elif text is not None:
        sample.error = f"{caption!r} is not text but {printable(text)[:40]}"
    own = (record[k] for k in ("key", "__key__") if isinstance(record.get(k), str | int))
    sample.key = str(next(own, "")) or sample.key
    return sample


def _key_of(name: str) -> str:
    try:
        return str(Path(name).with_suffix(""))
    except ValueError:  # a name without a base, as "."
        return ""


_BYTES = object()
"""In place of a value that is bytes, which metadata cannot hold: it becomes JSON."""


def _without_bytes(value: Any) -> Any:
    if isinstance(value, bytes) or (isinstance(value, dict) and value.keys() == {"bytes", "path"}):  # another picture
        return _BYTES
    if isinstance(value, dict):
        parts = {name: _without_bytes(part) for name, part in value.items()}
        return {name: part for name, part in parts.items() if part is not _BYTES} or (_BYTES if value else value)
    if isinstance(value, list | tuple):
        # The items of a list have one type, except in JSON, which has no bytes. A tuple is a key and a value of a map.
        first = next((item for item in value if item is not None), None)
        if isinstance(value, list) and not isinstance(first, bytes | dict | list | tuple):
            return value
        items = [*map(_without_bytes, value)]
        return _BYTES if any(item is _BYTES for item in items) else type(value)(items)
    return value


def _read_picture(folder: Path, name: str, follow_links: bool) -> bytes:
    if "://" in name:
        raise SampleError(f"{printable(name[:200])} is a URL: download first (`danqing select`, then img2dataset)")
    return read_file(str(folder), name, MAX_PICTURE_BYTES, follow_links)


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
