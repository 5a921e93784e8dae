"""WebDataset tar shards in img2dataset's layout: KEY.jpg + KEY.txt + KEY.json, members in any order."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from engine.errors import DanqingError


@dataclass
class Sample:
    """One pair as it lies in the shard; what is missing is empty, never left out."""

    key: str
    image: bytes
    image_extension: str
    caption: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        """32 hex digits: the input's own `uid`, else xxh128 of picture bytes and caption (as DataComp's uids)."""
        own = self.metadata.get("uid")
        if isinstance(own, str) and len(own) == 32 and all(c in "0123456789abcdef" for c in own):
            return own
        return xxhash.xxh128(self.image + self.caption.encode("utf-8", "surrogatepass")).hexdigest()


class TarShard:
    """An indexed tar: its rows in order of first appearance, members read by offset.

    The index reads headers only, so a row's members may lie anywhere in the file. A tar cut short keeps its
    whole members; `damage` then says so in words.
    """

    def __init__(self, path: Path, image_keys: tuple[str, ...], caption_keys: tuple[str, ...]) -> None:
        self.path = path
        self.image_keys, self.caption_keys = image_keys, caption_keys
        self.damage: str | None = None
        self.members: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            self._index()
        except (OSError, tarfile.TarError) as problem:
            raise DanqingError(f"{path}: cannot be read as a tar file: {problem}") from None

    def _index(self) -> None:
        size = self.path.stat().st_size
        with tarfile.open(self.path, "r:") as tar:
            while True:
                try:
                    member = tar.next()
                except tarfile.ReadError as problem:
                    self.damage = str(problem)
                    break
                if member is None:
                    if tar.offset >= size:
                        self.damage = "the file ends before its end-of-archive mark"
                    break
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    self.damage = f"{member.name} is cut off"
                    break
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                self.members.setdefault(key, {})[extension.lower()] = (member.offset_data, member.size)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Sample]:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for key, parts in self.members.items():
                yield self._sample(descriptor, key, parts)
        finally:
            os.close(descriptor)

    def _sample(self, descriptor: int, key: str, parts: dict[str, tuple[int, int]]) -> Sample:
        def member(extension: str | None) -> bytes:
            if extension is None:
                return b""
            offset, size = parts[extension]
            return os.pread(descriptor, size, offset)

        metadata = _metadata(member("json" if "json" in parts else None))
        image = next((k for k in self.image_keys if k in parts), None)
        text = next((k for k in self.caption_keys if k in parts), None)
        if text is not None:
            caption = member(text).decode("utf-8", "replace")
        else:
            in_json = next((k for k in (*self.caption_keys, "caption") if isinstance(metadata.get(k), str)), None)
            caption = metadata[in_json] if in_json else ""
        return Sample(key, member(image), image or "", caption, metadata)


def _metadata(data: bytes) -> dict[str, Any]:
    """A sample's .json as a flat record; what cannot be read is carried as `metadata_error`, never lost silently."""
    if not data:
        return {}
    try:
        content = json.loads(data)
    except ValueError as problem:
        return {"metadata_error": f"not valid JSON: {problem}"}
    return (
        content if isinstance(content, dict) else {"metadata_error": f"a JSON {type(content).__name__}, not an object"}
    )
