"""WRITE: copies the original bytes of the kept pairs into new shards, shard by shard.

A picture is copied, not encoded again. The clean caption is written; the input's own stays beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit
from danqing.engine.core.logs import log
from danqing.engine.core.progress import Progress
from danqing.engine.core.registry import Registry
from danqing.engine.run.folder import Run
from danqing.engine.sources import Shard, open_shard
from danqing.engine.write.formats import Pairs, Writer
from danqing.trt_models.package_files import sha256

WEBDATASET = "webdataset"
WRITERS: Registry[Writer] = Registry(
    "danqing.writers",
    {
        WEBDATASET: "danqing.engine.write.formats:write_webdataset",
        "parquet": "danqing.engine.write.formats:write_parquet",
    },
)
VERDICT = b"danqing.verdict"
"""Metadata of a written shard's table: the format, and the SHA-256 of the verdicts it was written from."""
UID = np.dtype("u8,u8")
"""DataComp's type for lists of uids: the two halves of the 128-bit number."""


def write(run: Run, progress: Progress, output_format: str = WEBDATASET) -> int:
    """Writes shards/ for every shard's verdicts, and kept_uids.npy.

    A shard that was written from the same verdicts in the same format is not written again.

    Args:
        run: a decided run.
        progress: counts the rows.
        output_format: name of a registered writer.

    Returns:
        The number of kept pairs.

    Raises:
        DanqingError: no such writer, or the input was changed since it was scored.
    """
    writer = WRITERS.named(output_format)
    uids: list[str] = []
    for shard in run.shards:
        mark = f"{output_format} {sha256(run.verdicts_path(shard.number))}"
        if not _is_written(run, shard, mark):
            _write_shard(run, shard, mark, writer)
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


def _write_shard(run: Run, shard: Shard, mark: str, writer: Writer) -> None:
    table = run.table_path(shard.number)
    table.unlink(missing_ok=True)  # first, because it marks the shard as complete
    for file in table.parent.glob(f"{table.stem}.*"):  # another format's
        file.unlink()
    verdicts = pq.read_table(run.verdicts_path(shard.number))
    kept = (
        pq.read_table(run.scores_path(shard.number)).append_column("group", verdicts["group"]).filter(verdicts["keep"])
    )
    kept = kept.replace_schema_metadata({**(kept.schema.metadata or {}), VERDICT: mark.encode()})
    writer(table.with_suffix(""), kept, _kept_pairs(run, shard, kept, len(verdicts)))
    if not table.exists():
        with commit(table) as out:
            pq.write_table(kept, out)
    log.info("wrote %s: %d of %d pairs", shard.name, len(kept), len(verdicts))


def _kept_pairs(run: Run, shard: Shard, kept: pa.Table, scored: int) -> Pairs:
    """Reads the kept pairs.

    Raises:
        DanqingError: the input was changed since it was scored.
    """
    records: dict[int, dict[str, Any]] = {record["row"]: record for record in kept.to_pylist()}
    source = open_shard(shard, run.layout)
    if len(source) != scored:
        raise DanqingError(f"{shard.path}: has {len(source)} samples, {scored} were scored; the file was changed since")
    for row, sample in enumerate(source):
        if row in records:
            if sample.uid != records[row]["uid"]:
                raise DanqingError(f"{shard.path}: row {row} ({sample.key}) was changed since it was scored")
            yield sample, records[row]
