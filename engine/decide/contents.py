"""What lies in a run's folder: hashes of its files, by which a run that was scored or decided anew is noticed.

The scores of a shard name the hash of its features (`engine.score.ledger`), so they stand for both.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import xxhash

from danqing.engine.core.errors import DanqingError
from danqing.engine.run.folder import Run

READ_BYTES = 1 << 20

MERGED = "merged"
"""Key of the manifest of a run that was made by merging others; lists them."""


def scores_hash(run: Run) -> str:
    """Hash of the scores and features of all shards."""
    return _hash_files(run.scores_path(shard.number) for shard in run.shards)


def verdicts_hash(run: Run) -> str:
    """Hash of the verdicts of all shards."""
    return _hash_files(run.verdicts_path(shard.number) for shard in run.shards)


def is_complete(run: Run) -> bool:
    """Whether the funnel and the verdicts of all shards are there."""
    files = [run.folder / "funnel.json", *(run.verdicts_path(shard.number) for shard in run.shards)]
    return all(file.exists() for file in files)


def merged_state(run: Run) -> dict[str, str]:
    """What a merged run depends on: the run's folder and the hashes of its scores and verdicts."""
    return {"folder": str(run.folder.resolve()), "scores": scores_hash(run), "verdicts": verdicts_hash(run)}


def check_current(run: Run) -> None:
    """Checks that the verdicts of a run are those of the scores on disk, and of the runs it was merged from.

    Raises:
        DanqingError: no verdicts, or scores or merged runs that changed; names the folder and what to do.
    """
    run.check_decided()
    merged = run.manifest.get(MERGED, [])
    again = " ".join(["danqing merge", *(part["folder"] for part in merged), "-o", str(run.folder)])
    for part in merged:
        other = Run.open(Path(part["folder"]))
        if "decided" not in other.manifest or part != merged_state(other):
            raise DanqingError(
                f"{other.folder} was scored or decided anew since {run.folder} was merged from it; run `{again}`"
            )
    if run.manifest["decided"].get("scores") != scores_hash(run):
        remedy = again if merged else f"danqing decide {run.folder}"
        raise DanqingError(f"{run.folder}: the scores changed since they were decided; run `{remedy}`")


def _hash_files(paths: Iterable[Path]) -> str:
    """XXH3 of files, 32 hex digits: it hashes faster than disks read.

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
