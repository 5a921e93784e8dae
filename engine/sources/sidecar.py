"""Failed downloads, which img2dataset lists only in the table beside a shard."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from danqing.engine.sources.sample import Layout, Sample

COLUMNS = {"key", "status", "error_message"}
FAILED = "failed"
"""Beginning of the status of a failed download: `failed_to_download`, `failed_to_resize`."""


def failed_downloads(table: Path, samples: Iterable[tuple[str, object]], layout: Layout) -> list[Sample]:
    """Makes a sample without a picture of every URL that img2dataset could not download.

    img2dataset writes the downloaded pictures to NNNNN.tar, and all rows with their `status` to NNNNN.parquet. The
    funnel counts the failed rows as collected.

    Args:
        table: NNNNN.parquet; may be missing or another program's, then there are no failed downloads.
        samples: key and members of the shard's samples; a row with one of these keys has not failed.
        layout: names of the caption's column.

    Returns:
        The samples, in the order of the table; their metadata has `status` and `error_message`.
    """
    try:
        names = pq.read_schema(table).names
        if not set(names) >= COLUMNS:
            return []
        rows = pq.read_table(table, columns=[name for name in names if name != "exif"])
        failed = rows.filter(pc.starts_with(rows["status"].cast(pa.string()), FAILED)).to_pylist()
    except (OSError, pa.ArrowException, ValueError):
        return []
    downloaded = {key for key, _ in samples} if failed else set()
    found = []
    for record in failed:
        key = str(record.pop("key"))
        if key not in downloaded:
            own = (record.pop(name) for name in layout.caption_keys if isinstance(record.get(name), str))
            found.append(Sample(key, b"", "", next(own, ""), record))
    return found
