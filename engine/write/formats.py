"""Formats of written shards: WebDataset tars, and Parquet with the pictures inside."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from danqing.engine.core.files import commit
from danqing.engine.core.names import member_name
from danqing.engine.sources import Sample

Pairs = Iterator[tuple[Sample, dict[str, Any]]]
"""The kept samples of a shard in order, each with its row of the scores."""

ROW_GROUP = 256
"""Pairs in memory and in a row group; readers of the table read a whole row group to show one picture."""
RUN_COLUMNS = ("feature_row", "gated_at", "error")
"""Columns of the scores that have no meaning outside the run."""


class Writer(Protocol):
    """Writes the files of a shard."""

    def __call__(self, shard: Path, kept: pa.Table, pairs: Pairs) -> None:
        """Writes the kept pairs of one shard, each file by `engine.core.files.commit`.

        Args:
            shard: path of the shard's files without a suffix, OUT/shards/00000.
            kept: scores of the kept pairs. They become SHARD.parquet after the writer returns, unless it wrote this
                file; then the file needs the metadata of `kept`'s schema.
            pairs: the kept pairs, read from the input while they are iterated over.
        """
        ...


def write_webdataset(shard: Path, kept: pa.Table, pairs: Pairs) -> None:
    """Writes NNNNN.tar in img2dataset's layout: KEY.jpg, KEY.txt with the clean caption, KEY.json with the scores."""
    with commit(shard.with_suffix(".tar")) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for sample, record in pairs:
            name = member_name(sample.key)
            _add(tar, f"{name}.{image_extension(sample)}", sample.image)
            _add(tar, f"{name}.txt", clean_caption(sample, record).encode())
            _add(tar, f"{name}.json", json.dumps(_json_fields(record), ensure_ascii=False, default=str).encode())


def write_parquet(shard: Path, kept: pa.Table, pairs: Pairs) -> None:
    """Writes NNNNN.parquet: `image` {bytes, path} as Hugging Face's datasets read it, `text`, and the scores."""
    taken = ("image", "text")
    scores = kept.rename_columns([f"input_{name}" if name in taken else name for name in kept.column_names])
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
    schema = pa.schema([("image", image), ("text", pa.string()), *scores.schema])
    schema = schema.with_metadata({**kept.schema.metadata, b"huggingface": features.encode()})
    first, dictionary = 0, scores.column_names
    with (
        commit(shard.with_suffix(".parquet")) as file,
        pq.ParquetWriter(file, schema, use_dictionary=dictionary) as out,
    ):
        while group := list(islice(pairs, ROW_GROUP)):
            pictures = [{"bytes": s.image, "path": f"{s.key}.{image_extension(s)}"} for s, _ in group]
            texts = [clean_caption(sample, record) for sample, record in group]
            columns = [pa.array(pictures, image), pa.array(texts, pa.string())]
            out.write_table(pa.table([*columns, *scores.slice(first, len(group))], schema=schema))
            first += len(group)


def clean_caption(sample: Sample, record: dict[str, Any]) -> str:
    """The caption to write: clean if the recipe cleaned it, else the input's."""
    return record.get("text_clean") or sample.caption


def image_extension(sample: Sample) -> str:
    """Extension of the picture's own file, else the usual one of its format; `bin` if the format is unknown."""
    if sample.image_extension:
        return sample.image_extension
    try:
        with Image.open(io.BytesIO(sample.image)) as picture:
            form = str(picture.format)
    except Exception:  # a recipe without criteria of pictures keeps broken ones
        return "bin"
    return {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}.get(form, form.lower())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without time, owner and mode, so that equal input gives equal bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _json_fields(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value is not None and name not in RUN_COLUMNS}
