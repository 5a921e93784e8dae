"""What WRITE is to make of a run's verdicts: which pairs go into which output shard."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.memory import DEFAULT_MAX_PIXELS
from danqing.engine.core.storage import fetch_all
from danqing.engine.decide.contents import hash_file, joined_hash
from danqing.engine.run.folder import Run
from danqing.engine.run.recaptions import are_current, recaption_again
from danqing.engine.run.tables import decide_again, verdicts_table

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
        digest: `hash_file` of the file.
        recaptions: `hash_file` of the shard's recaptions, if the run has them for all its kept rows; else empty.
    """

    rows: int
    kept: int
    digest: str
    recaptions: str = ""


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


def max_pixels(run: Run) -> int:
    """The run's limit of the pixels of a picture; a merged run has none of its own."""
    return int(run.manifest.get("max_pixels", DEFAULT_MAX_PIXELS))


def read_verdicts(run: Run) -> list[InputVerdicts]:
    """Reads what WRITE needs to know about the verdicts on disk, for each input shard.

    Raises:
        DanqingError: verdicts of a shard are missing.
    """
    found = []
    fetch_all(run.verdicts_path(shard.number) for shard in run.shards)
    for shard in run.shards:
        path = run.verdicts_path(shard.number)
        if not path.exists():
            raise DanqingError(f"{path}: no verdicts; run `danqing decide {run.folder}` again")
        keep = verdicts_table(run, shard.number, ["keep"])["keep"]
        found.append(InputVerdicts(len(keep), int(np.count_nonzero(keep)), hash_file(path, decide_again(run))))
    return _with_recaptions(run, found) if are_current(run, verdicts_digest(found)) else found


def _with_recaptions(run: Run, verdicts: list[InputVerdicts]) -> list[InputVerdicts]:
    paths = [run.recaptions_path(shard.number) for shard in run.shards]
    if not all(path.exists() for path, part in zip(paths, verdicts, strict=True) if part.kept):
        return verdicts
    return [
        replace(part, recaptions=hash_file(path, recaption_again(run))) if part.kept else part
        for path, part in zip(paths, verdicts, strict=True)
    ]


def recaptions_digest(verdicts: list[InputVerdicts]) -> str:
    """Hash of the recaptions of some input shards; empty without recaptions."""
    digests = [part.recaptions for part in verdicts]
    return joined_hash(digests) if any(digests) else ""


def verdicts_digest(verdicts: list[InputVerdicts]) -> str:
    """Hash of the verdicts of some input shards; of all, it is `verdicts_hash` of the run."""
    return joined_hash(part.digest for part in verdicts)


def decision_digest(run: Run, verdicts: list[InputVerdicts]) -> str:
    """Hash of the verdicts and of what they were decided by, which reports show beside them."""
    decided = json.dumps(run.manifest.get("decided"), sort_keys=True)
    return joined_hash([verdicts_digest(verdicts), decided])


def output_shards(verdicts: list[InputVerdicts], options: WriteOptions) -> list[OutputShard]:
    """Lists the shards to write: `shard_size` pairs each, over the borders of input shards, none empty.

    Args:
        verdicts: of each input shard (`read_verdicts`).
        options: shard size and order.
    """
    starts = starts_of(verdicts)
    whole = verdicts_digest(verdicts)
    shards = []
    for number, first in enumerate(range(0, starts[-1], options.shard_size)):
        last = min(first + options.shard_size, starts[-1])
        content: dict[str, Any] = {
            "format": options.output_format,
            "shard_size": options.shard_size,
            "shuffle": options.shuffle,
            "pairs": last - first,
        }
        if options.shuffle is None:  # verdicts of other input shards change nothing here
            parts = list(cut(starts, first, last))
            read = [verdicts[part.shard] for part in parts]
            content |= {"first": parts[0].first, "verdicts": verdicts_digest(read)}
        else:
            read = verdicts
            content |= {"first": first, "verdicts": whole}
        if recaptions := recaptions_digest(read):
            content["recaptions"] = recaptions
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


def starts_of(verdicts: list[InputVerdicts]) -> list[int]:
    """Position of each input shard's first kept pair among all kept pairs, and at the end the number of these."""
    return [0, *accumulate(part.kept for part in verdicts)]


def cut(starts: list[int], first: int, last: int) -> Iterator[Part]:
    """Cuts a range of the kept pairs, in input order, at the borders of input shards.

    >>> list(cut([0, 4, 4, 9], 3, 6))
    [Part(shard=0, first=3, last=4), Part(shard=2, first=0, last=2)]
    """
    number = bisect_right(starts, first) - 1
    while first < last:
        end = min(last, starts[number + 1])
        if first < end:
            yield Part(number, first - starts[number], end - starts[number])
        first, number = end, number + 1
