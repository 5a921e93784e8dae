"""The first rows of the input, for a trial."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from danqing.engine.sources import Layout, Shard, open_shard


def first_rows(shards: Iterable[Shard], limit: int | None, layout: Layout) -> list[Shard]:
    """Returns the shards that hold the first `limit` rows over all shards; the last of them may be cut.

    Shards behind the limit are not opened. Without a limit these are all shards.
    """
    if limit is None:
        return list(shards)
    chosen: list[Shard] = []
    for shard in shards:
        rows = len(open_shard(shard, layout)) if shard.rows is None else shard.rows
        if rows > limit:
            shard = replace(shard, rows=limit, bytes=shard.bytes * limit // rows)
        chosen.append(shard)
        limit -= min(rows, limit)
        if limit == 0:
            break
    return chosen
