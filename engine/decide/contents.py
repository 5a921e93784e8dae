"""Hashes of a run's files, by which a run that was scored or decided anew is noticed.

The scores of a shard name the hash of its features (`engine.score.ledger`), so they stand for both.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import xxhash

from danqing.engine.core.errors import DanqingError
from danqing.engine.run.folder import Run

READ_BYTES = 1 << 20


def scores_hash(run: Run) -> str:
    """Hash of the scores and features of all shards."""
    return _hash_files(run.scores_path(shard.number) for shard in run.shards)


def verdicts_hash(run: Run) -> str:
    """Hash of the verdicts of all shards."""
    return _hash_files(run.verdicts_path(shard.number) for shard in run.shards)


def _hash_files(paths: Iterable[Path]) -> str:
    """XXH3 of files, 32 hex digits: it reads faster than a disk, and nobody gains by a collision.

    Raises:
        DanqingError: a file is missing.
    """
    whole = xxhash.xxh3_128()
    for path in paths:
        digest = xxhash.xxh3_128()
        try:
            with path.open("rb") as file:
                while part := file.read(READ_BYTES):
                    digest.update(part)
        except FileNotFoundError:
            raise DanqingError(f"{path}: missing, or a link to a run that was moved or removed") from None
        whole.update(digest.digest())
    return whole.hexdigest()
