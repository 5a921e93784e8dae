"""Hashes of the files in a run's folder, which show that a run was scored or decided again.

The scores of a shard name the hash of its features (`engine.score.ledger`), so they stand for both.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import xxhash

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.storage import fetch_all, path_of
from danqing.engine.decide.funnel import Funnel
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import SCORE_AGAIN, decide_again, reading

READ_BYTES = 1 << 20


def scores_hash(run: Run) -> str:
    """Hash of the scores and features of all shards."""
    return _hash_files([run.scores_path(shard.number) for shard in run.shards], SCORE_AGAIN)


def verdicts_hash(run: Run) -> str:
    """Hash of the verdicts of all shards."""
    return _hash_files([run.verdicts_path(shard.number) for shard in run.shards], decide_again(run))


def _hash_files(paths: list[Path], remedy: str) -> str:
    fetch_all(paths)
    return joined_hash(hash_file(path, remedy) for path in paths)


def is_complete(run: Run) -> bool:
    """Whether the funnel and the verdicts of all shards are there and can be read."""
    try:
        Funnel.of(run)
        for shard in run.shards:
            with reading(run.verdicts_path(shard.number), decide_again(run)):
                pq.read_metadata(run.verdicts_path(shard.number))
    except DanqingError:
        return False
    return True


def merged_state(run: Run) -> dict[str, str]:
    """The inputs of a merged run: a run's folder and the hashes of its scores and verdicts."""
    return {"folder": str(run.folder.resolve()), "scores": scores_hash(run), "verdicts": verdicts_hash(run)}


def check_current(run: Run) -> None:
    """Checks that the verdicts of a run are those of the scores on disk, and of the runs it was merged from.

    Raises:
        DanqingError: no verdicts, or scores or merged runs that changed; names the folder and what to do.
    """
    run.check_decided()
    for part in run.parts:
        if not path_of(part["folder"]).exists():
            raise DanqingError(
                f"{part['folder']}, which {run.folder} was merged from, is missing; restore it, or merge the runs again"
            )
        other = Run.open(path_of(part["folder"]))
        if "decided" not in other.manifest or part != merged_state(other):
            raise DanqingError(
                f"{other.folder} was scored or decided again since {run.folder} was merged from it; run "
                f"`{run.decide_command}`"
            )
    if run.manifest["decided"].get("scores") != scores_hash(run):
        raise DanqingError(f"{run.folder}: the scores changed since they were decided; run `{run.decide_command}`")


def hash_file(path: Path, remedy: str) -> str:
    """XXH3 of a file, 32 hex digits: it hashes faster than disks read.

    Raises:
        DanqingError: the file is missing; names it and the remedy.
    """
    digest = xxhash.xxh3_128()
    with reading(path, remedy), path.open("rb") as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def joined_hash(hashes: Iterable[str]) -> str:
    """One hash of the hashes of several files."""
    return xxhash.xxh3_128_hexdigest("".join(hashes).encode())
