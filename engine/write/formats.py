"""Formats of written shards: WebDataset tars, and Parquet with the pictures inside.

A writer reads its file back before the file gets its final name, while it is in the page cache: the hash of its bytes
must be that of what was written, and its index or footer must list the pairs. Contents are not parsed again.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit
from danqing.engine.core.names import PICTURE_EXTENSION, member_name, unique_key
from danqing.engine.decide.contents import hash_file
from danqing.engine.sources import Layout, Sample
from danqing.engine.sources.tar import read_members
from danqing.engine.stages.header import read_header

Pairs = Iterator[tuple[Sample, dict[str, Any]]]
"""The kept samples of an output shard in order, each with its row of the scores. A sample's key is its name in the
shard: unique, without a dot, and no path that leads out of a folder. Its picture always has an extension."""

ROW_GROUP = 256
"""Pairs in memory and in a row group; readers of the table read a whole row group to show one picture."""
RUN_COLUMNS = ("feature_row", "gated_at", "error")
"""Columns of the scores that have no meaning outside the run."""
IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
"""Type of the pictures in Parquet, as Hugging Face's datasets read it."""


class HashedFile(io.RawIOBase):
    """A file that is written from its start to its end, and a hash of what is written.

    Args:
        file: opened for writing; the caller flushes and closes it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, xxhash.xxh3_128()

    @property
    def hash(self) -> str:
        """XXH3 of all bytes so far, as `engine.decide.contents.hash_file` reads it from the file."""
        return self._hash.hexdigest()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._file.write(data)


class Writer(Protocol):
    """Writes the files of an output shard."""

    def __call__(self, shard: Path, kept: pa.Table, pairs: Pairs) -> None:
        """Writes the kept pairs of one shard, each file by `engine.core.files.commit`.

        Args:
            shard: path of the shard's files without a suffix, OUT/shards/00000.
            kept: scores of the kept pairs. They become SHARD.parquet after the writer returns, unless it wrote this
                file; then the file needs the metadata of `kept`'s schema.
            pairs: the kept pairs, read from the input while they are iterated over.

        Raises:
            DanqingError: what was read back is not what was written.
        """
        ...


def write_webdataset(shard: Path, kept: pa.Table, pairs: Pairs) -> None:
    """Writes NNNNN.tar in img2dataset's layout: KEY.jpg, KEY.txt with the clean caption, KEY.json with the scores."""
    written: list[tuple[str, int]] = []
    path = shard.with_suffix(".tar")
    with commit(path) as file:
        hashed = HashedFile(file)
        with tarfile.open(fileobj=hashed, mode="w") as tar:
            for sample, record in pairs:
                for extension, content in _members(sample, record):
                    written.append((f"{sample.key}.{extension}", len(content)))
                    _add(tar, f"{sample.key}.{extension}", content)
        file.flush()
        _check_tar(Path(file.name), written, path, hashed.hash)


def _members(sample: Sample, record: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    yield sample.image_extension, sample.image
    yield "txt", clean_caption(record).encode()
    yield "json", json.dumps(_json_fields(record), ensure_ascii=False, allow_nan=False, default=str).encode()


def write_parquet(shard: Path, kept: pa.Table, pairs: Pairs) -> None:
    """Writes NNNNN.parquet: `image` {bytes, path} as Hugging Face's datasets read it, `text`, and the scores.

    No column of the scores is named like one of the first two (`core.carried.RESERVED`).
    """
    features = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
    schema = with_pairs(kept.schema).with_metadata({**kept.schema.metadata, b"huggingface": features.encode()})
    first, path = 0, shard.with_suffix(".parquet")
    with commit(path) as file:
        hashed = HashedFile(file)
        with pq.ParquetWriter(hashed, schema, use_dictionary=kept.column_names, write_page_checksum=True) as out:
            while group := list(islice(pairs, ROW_GROUP)):
                pictures = [{"bytes": s.image, "path": f"{s.key}.{s.image_extension}"} for s, _ in group]
                texts = [clean_caption(record) for _, record in group]
                columns = [pa.array(pictures, IMAGE_TYPE), pa.array(texts, pa.string())]
                out.write_table(pa.table([*columns, *kept.slice(first, len(group))], schema=schema))
                first += len(group)
        file.flush()
        check_table(Path(file.name), kept, path, hashed.hash)


def with_pairs(scores: pa.Schema) -> pa.Schema:
    """Adds the columns `image` and `text` of the format `parquet` to a schema of scores."""
    return pa.schema([("image", IMAGE_TYPE), ("text", pa.string()), *scores])


def write_table(table: pa.Table, path: Path) -> None:
    """Writes a table of scores and reads it back.

    Raises:
        DanqingError: what was read back is not the table.
    """
    with commit(path) as file:
        hashed = HashedFile(file)
        pq.write_table(table, hashed, write_page_checksum=True)
        file.flush()
        check_table(Path(file.name), table, path, hashed.hash)


def _check_tar(file: Path, written: list[tuple[str, int]], path: Path, expected: str) -> None:
    """Compares a tar with what was written.

    Args:
        file, path, expected: see `check_table`.
        written: names and sizes of the members.
    """
    _check_bytes(file, path, expected)
    index = read_members(file)
    if index.damage:
        _refuse(path, " ".join(index.damage[0]))
    if [(name, size) for name, _, size in index.members] != written:
        _refuse(path, f"it has {len(index.members)} members, {len(written)} were written, or their names differ")


def check_table(file: Path, table: pa.Table, path: Path, expected: str) -> None:
    """Compares a Parquet file with the table it was written from: all bytes, schema, rows and identities.

    Args:
        file: the file, with page checksums; its name may be a temporary one.
        table: the scores that it must hold.
        path: its final name, for the error's text.
        expected: the hash of what was written to it (`HashedFile`).

    Raises:
        DanqingError: they differ, or the file cannot be read.
    """
    _check_bytes(file, path, expected)
    identity = [name for name in ("shard", "row", "key", "uid") if name in table.column_names]
    try:
        with pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False) as parquet:
            if not {*table.column_names} <= {*parquet.schema_arrow.names}:
                _refuse(path, "columns are missing")
            if parquet.metadata.num_rows != len(table):
                _refuse(path, f"{parquet.metadata.num_rows} rows, {len(table)} were written")
            if not parquet.read(identity).equals(table.select(identity)):
                _refuse(path, "other rows than were written")
    except (pa.ArrowException, OSError) as problem:
        _refuse(path, str(problem))


def _check_bytes(file: Path, path: Path, expected: str) -> None:
    if hash_file(file, "run `danqing write` again") != expected:
        _refuse(path, "other bytes")


def _refuse(path: Path, problem: str) -> NoReturn:
    raise DanqingError(
        f"{path}: what was read back differs from what was written ({problem}); check the disk and the memory, then "
        "run `danqing write` again"
    )


def clean_caption(record: dict[str, Any]) -> str:
    """The caption to write: clean if the recipe cleaned it, else as it was read."""
    return record.get("text_clean") or record["caption"] or ""


def image_extension(sample: Sample, max_pixels: int) -> str:
    """Extension of the picture's own file if readers know it as a picture's, else the usual one of its format.

    A picture of unknown format has its own extension, or `bin`.

    Args:
        sample: the pair.
        max_pixels: the run's limit, see `stages.header.read_header`.
    """
    own = sample.image_extension if PICTURE_EXTENSION.fullmatch(sample.image_extension) else ""
    if own in Layout.image_keys:
        return own
    form = read_header(sample.image, max_pixels).format
    if form is None:  # a recipe without criteria of pictures keeps broken ones
        return own or "bin"
    return {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}.get(form, form.lower())


def member_names(keys: Iterable[str]) -> list[str]:
    """Makes unique names of an output shard's keys, which come from several input shards (`unique_key`).

    >>> member_names(["cat", "cat", "a.b"])
    ['cat', 'cat_1', 'a%2Eb']
    """
    taken: dict[str, int] = {}
    return [member_name(unique_key(key, taken)) for key in keys]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without time, owner and mode, so that equal input gives equal bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _json_fields(record: dict[str, Any]) -> dict[str, Any]:
    """A row of the scores without nulls; JSON has no notation for NaN and infinities, so they are nulls, too."""
    fields = {name: _finite(value) for name, value in record.items() if name not in RUN_COLUMNS}
    return {name: value for name, value in fields.items() if value is not None}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
