"""WRITE: shard by shard, the original bytes of the kept pairs.

A picture is copied, never encoded again; the caption is written clean, the original stays beside it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit
from danqing.engine.core.progress import Progress
from danqing.engine.run.folder import Run, log
from danqing.engine.sources import Sample, Shard, open_shard
from danqing.trt_models.package_files import sha256

WEBDATASET, PARQUET = "webdataset", "parquet"
VERDICT = b"danqing.verdict"
UID = np.dtype("u8,u8")
"""DataComp's type for lists of uids: the two halves of the 128-bit number."""

Pairs = Iterator[tuple[Sample, dict[str, Any]]]
"""The kept samples of a shard, in order, each with its row of the scores."""


def write(run: Run, progress: Progress, output_format: str = WEBDATASET) -> int:
    """Writes shards/ (see `FORMATS`) for every verdict, and kept_uids.npy; returns the number of kept pairs.

    A shard that was already written from the same verdicts, in the same format, is left alone.
    """
    uids: list[str] = []
    for shard in run.shards:
        mark = f"{output_format} {sha256(run.verdicts_path(shard.number))}"
        if not _is_written(run, shard, mark):
            _write_shard(run, shard, mark, FORMATS[output_format])
        table = pq.read_table(run.verdicts_path(shard.number), columns=["uid", "keep"])
        uids += table.filter(table["keep"])["uid"].to_pylist()
        progress.expect(len(table), shard.bytes)
        progress.advance(len(table))
    with commit(run.folder / "kept_uids.npy") as file:
        np.save(file, np.sort(np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], UID)))
    return len(uids)


def _is_written(run: Run, shard: Shard, mark: str) -> bool:
    path = run.table_path(shard.number)
    return path.exists() and (pq.read_schema(path).metadata or {}).get(VERDICT) == mark.encode()


def _write_shard(run: Run, shard: Shard, mark: str, written: Callable[[Run, int, pa.Table, Pairs], None]) -> None:
    run.table_path(shard.number).unlink(missing_ok=True)  # the table, written last, marks a complete shard
    run.tar_path(shard.number).unlink(missing_ok=True)
    verdicts = pq.read_table(run.verdicts_path(shard.number))
    scores = pq.read_table(run.scores_path(shard.number))
    kept = scores.append_column("group", verdicts["group"]).filter(verdicts["keep"])
    kept = kept.replace_schema_metadata({**(kept.schema.metadata or {}), VERDICT: mark.encode()})
    written(run, shard.number, kept, _kept_pairs(run, shard, kept, len(verdicts)))
    log.info("wrote %s: %d of %d pairs", shard.name, len(kept), len(verdicts))


def _kept_pairs(run: Run, shard: Shard, kept: pa.Table, scored: int) -> Pairs:
    """Raises DanqingError if the input is not what was scored."""
    records = {record["row"]: record for record in kept.to_pylist()}
    source = open_shard(shard, run.layout)
    if len(source) != scored:
        raise DanqingError(f"{shard.path}: has {len(source)} samples, {scored} were scored; the file was changed since")
    for row, sample in enumerate(source):
        if row in records:
            if sample.uid != records[row]["uid"]:
                raise DanqingError(f"{shard.path}: row {row} ({sample.key}) was changed since it was scored")
            yield sample, records[row]


def _write_webdataset(run: Run, number: int, kept: pa.Table, pairs: Pairs) -> None:
    """NNNNN.tar as img2dataset writes it, and NNNNN.parquet with the scores."""
    with commit(run.tar_path(number)) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for sample, record in pairs:
            name = _member_name(sample.key)
            _add(tar, f"{name}.{_extension(sample)}", sample.image)
            _add(tar, f"{name}.txt", _caption(sample, record).encode())
            _add(tar, f"{name}.json", json.dumps(_plain(record), ensure_ascii=False, default=str).encode())
    with commit(run.table_path(number)) as file:
        pq.write_table(kept, file)


def _write_parquet(run: Run, number: int, kept: pa.Table, pairs: Pairs) -> None:
    """NNNNN.parquet: `image` {bytes, path} as Hugging Face's datasets read it, `text`, and the scores."""
    taken = ("image", "text")
    scores = kept.rename_columns([f"input_{name}" if name in taken else name for name in kept.column_names])
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
    schema = pa.schema([("image", image), ("text", pa.string()), *scores.schema])
    schema = schema.with_metadata({**kept.schema.metadata, b"huggingface": features.encode()})
    first = 0
    with (
        commit(run.table_path(number)) as file,
        pq.ParquetWriter(file, schema, use_dictionary=scores.column_names) as out,
    ):
        while some := list(islice(pairs, ROW_GROUP)):
            pictures = [{"bytes": s.image, "path": f"{s.key}.{_extension(s)}"} for s, _ in some]
            texts = [_caption(sample, record) for sample, record in some]
            columns = [pa.array(pictures, image), pa.array(texts, pa.string())]
            out.write_table(pa.table([*columns, *scores.slice(first, len(some))], schema=schema))
            first += len(some)


FORMATS = {WEBDATASET: _write_webdataset, PARQUET: _write_parquet}
ROW_GROUP = 256
"""Pairs in memory at a time, and in a row group: readers of such tables fetch a whole one to show a single picture."""


def _caption(sample: Sample, record: dict[str, Any]) -> str:
    return record.get("text_clean") or sample.caption


def _member_name(key: str) -> str:
    """The key as a name inside a tar: never out of the folder it is unpacked in, and no dot but the extension's."""
    *folders, base = [part for part in key.split("/") if part not in ("", ".", "..")] or ["_"]
    return "/".join([*folders, base.replace(".", "%2E")])


def _extension(sample: Sample) -> str:
    """The picture file's own, else the usual one of its format."""
    if sample.image_extension:
        return sample.image_extension
    try:
        with Image.open(io.BytesIO(sample.image)) as picture:
            form = str(picture.format)
    except Exception:  # kept by a recipe that does not look at pictures
        return "bin"
    return {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}.get(form, form.lower())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no times, owners or modes of this machine: equal input, equal bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """A row of the scores as JSON: without what only the run needs, and without nulls."""
    skip = ("feature_row", "gated_at", "error")
    return {k: v for k, v in record.items() if v is not None and k not in skip}
