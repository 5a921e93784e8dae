"""What WRITE is to make of a run's verdicts: which pairs go into which output shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from danqing.engine.core.errors import DanqingError
from danqing.engine.run.folder import Run
from danqing.trt_models.package_files import sha256

WEBDATASET, PARQUET = "webdataset", "parquet"
SHARD_SIZE = 10_000
"""Pairs of an output shard, the default of img2dataset."""
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class WriteOptions:
    """How the kept pairs are written.

    Attributes:
        output_format: name of a registered writer.
        shard_size: pairs of an output shard; the last one may have fewer.
        shuffle: seed of a permutation of all kept pairs; None for input order.
        licence: what the dataset card names as the licence.

    Raises:
        DanqingError: a number is out of range.
    """

    output_format: str = WEBDATASET
    shard_size: int = SHARD_SIZE
    shuffle: int | None = None
    licence: str = "other"

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise DanqingError(f"--shard-size {self.shard_size}: give a whole number of 1 or more")
        if self.shuffle is not None and not 0 <= self.shuffle <= MAX_SEED:
            raise DanqingError(f"--shuffle {self.shuffle}: give a seed between 0 and {MAX_SEED}")


@dataclass(frozen=True)
class InputVerdicts:
    """The verdicts of one input shard.

    Attributes:
        rows: number of rows.
        kept: number of kept rows.
        digest: SHA-256 of the file.
    """

    rows: int
    kept: int
    digest: str


@dataclass(frozen=True)
class OutputShard:
    """One shard to write.

    Attributes:
        number: position among the output shards; names the files.
        first, last: its pairs, as a range of the kept pairs in output order.
        mark: JSON that changes whenever the shard's content would: options, range and digests of verdicts.
    """

    number: int
    first: int
    last: int
    mark: str


def read_verdicts(run: Run) -> list[InputVerdicts]:
    """Reads what WRITE needs to know about the verdicts on disk, for each input shard.

    Raises:
        DanqingError: verdicts of a shard are missing.
    """
    found = []
    for shard in run.shards:
        path = run.verdicts_path(shard.number)
        if not path.exists():
            raise DanqingError(f"{path}: no verdicts; run `danqing decide {run.folder}` again")
        keep = pq.read_table(path, columns=["keep"])["keep"]
        found.append(InputVerdicts(len(keep), int(np.count_nonzero(keep)), sha256(path)))
    return found


def verdicts_digest(verdicts: list[InputVerdicts]) -> str:
    """SHA-256 of the verdicts of the whole run."""
    return hashlib.sha256("".join(part.digest for part in verdicts).encode()).hexdigest()


def decision_digest(run: Run, verdicts: list[InputVerdicts]) -> str:
    """SHA-256 of the verdicts and of what they were decided by, which reports show beside them."""
    decided = json.dumps(run.manifest.get("decided"), sort_keys=True)
    return hashlib.sha256(f"{verdicts_digest(verdicts)} {decided}".encode()).hexdigest()


def output_shards(verdicts: list[InputVerdicts], options: WriteOptions) -> list[OutputShard]:
    """Lists the shards to write: `shard_size` pairs each, over the borders of input shards, none empty.

    Args:
        verdicts: of each input shard (`read_verdicts`).
        options: shard size and order.
    """
    total = sum(part.kept for part in verdicts)
    shards = []
    for number, first in enumerate(range(0, total, options.shard_size)):
        last = min(first + options.shard_size, total)
        parts = list(cut(verdicts, first, last))
        # A shuffled shard holds pairs of any input shard. In input order, verdicts elsewhere change nothing here.
        sources = verdicts if options.shuffle is not None else [verdicts[part.shard] for part in parts]
        content = {
            "format": options.output_format,
            "shard_size": options.shard_size,
            "shuffle": options.shuffle,
            "first": first if options.shuffle is not None else parts[0].first,
            "pairs": last - first,
            "verdicts": verdicts_digest(list(sources)),
        }
        shards.append(OutputShard(number, first, last, json.dumps(content)))
    return shards


@dataclass(frozen=True)
class Part:
    """A range of one input shard's kept pairs.

    Attributes:
        shard: number of the input shard.
        first, last: the range, counted among the shard's kept pairs.
    """

    shard: int
    first: int
    last: int


def cut(verdicts: list[InputVerdicts], first: int, last: int) -> Iterator[Part]:
    """Cuts a range of the kept pairs, in input order, at the borders of input shards."""
    start = 0
    for number, part in enumerate(verdicts):
        low, high = max(first - start, 0), min(last - start, part.kept)
        if low < high:
            yield Part(number, low, high)
        start += part.kept
        if start >= last:
            return
