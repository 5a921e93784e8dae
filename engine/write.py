"""WRITE: shard by shard, the original bytes of the kept pairs.

A picture is copied, never encoded again; the caption is written clean, the original stays in the .json.
"""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from engine.errors import DanqingError
from engine.files import commit
from engine.progress import Progress
from engine.run import Run, log
from engine.sources import Shard, open_shard
from trt_models.store import sha256

VERDICT = b"danqing.verdict"
UID = np.dtype("u8,u8")
"""DataComp's type for lists of uids: the two halves of the 128-bit number."""


def write(run: Run, progress: Progress) -> int:
    """Writes shards/NNNNN.tar and .parquet for every verdict, and kept_uids.npy; returns the number of kept pairs.

    A shard that was already written from the same verdicts is left alone.
    """
    uids: list[str] = []
    for shard in run.shards:
        verdict = sha256(run.verdicts(shard.number))
        if not _is_written(run, shard, verdict):
            _write_shard(run, shard, verdict)
        table = pq.read_table(run.verdicts(shard.number), columns=["uid", "keep"])
        uids += table.filter(table["keep"])["uid"].to_pylist()
        progress.expect(len(table), shard.bytes)
        progress.advance(len(table))
    with commit(run.folder / "kept_uids.npy") as file:
        np.save(file, np.sort(np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], UID)))
    return len(uids)


def _is_written(run: Run, shard: Shard, verdict: str) -> bool:
    path = run.table(shard.number)
    return path.exists() and (pq.read_schema(path).metadata or {}).get(VERDICT) == verdict.encode()


def _write_shard(run: Run, shard: Shard, verdict: str) -> None:
    run.table(shard.number).unlink(missing_ok=True)  # the parquet is the mark that tar and parquet are whole
    verdicts = pq.read_table(run.verdicts(shard.number))
    kept = pq.read_table(run.scores(shard.number)).append_column("group", verdicts["group"]).filter(verdicts["keep"])
    records = {record["row"]: record for record in kept.to_pylist()}
    source = open_shard(shard.path, run.layout)
    if len(source) != len(verdicts):
        raise DanqingError(
            f"{shard.path}: has {len(source)} samples, {len(verdicts)} were scored; the file was changed since"
        )
    with commit(run.tar(shard.number)) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for row, sample in enumerate(source):
            if row in records:
                record = records[row]
                if sample.uid != record["uid"]:
                    raise DanqingError(f"{shard.path}: row {row} ({sample.key}) was changed since it was scored")
                _add(tar, f"{sample.key}.{sample.image_extension}", sample.image)
                _add(tar, f"{sample.key}.txt", (record.get("text_clean") or sample.caption).encode())
                _add(tar, f"{sample.key}.json", json.dumps(_plain(record), ensure_ascii=False).encode())
    metadata = {**(kept.schema.metadata or {}), VERDICT: verdict.encode()}
    with commit(run.table(shard.number)) as file:
        pq.write_table(kept.replace_schema_metadata(metadata), file)
    log.info("wrote %s: %d of %d pairs", shard.name, len(kept), len(verdicts))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no times, owners or modes of this machine: equal input, equal bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """A row of the scores as JSON: without what only the run needs, and without nulls."""
    skip = ("feature_row", "gated_at", "error")
    return {k: v for k, v in record.items() if v is not None and k not in skip}
