"""Measures the CPU seconds per GB of reading shards from object storage, by Arrow alone, and from local files.

    python -m danqing.profiling.bench.storage --mib 512

A server of its own process, whose CPU time is not counted, sends shards of random members from a folder. Each side is a
process with an empty cache. The cost of the copies is compared with Arrow's that writes what it read to files: the
kernel's share, which depends much on whether the machine has free memory.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from pyarrow import fs

from danqing.engine.core import buckets, local_copies, storage
from danqing.engine.sources import Layout, find_shards, open_shard
from danqing.profiling.bench import harness
from danqing.profiling.bench.s3_server import served_folder

SHARD_MIB, MEMBER_BYTES = 64, 24_000
READ_BYTES = 1 << 20


def write_shards(folder: Path, mib: int) -> list[Path]:
    """Writes tars of random members with captions."""
    random, paths = np.random.default_rng(harness.SEED), []
    for number in range(max(mib // SHARD_MIB, 1)):
        paths.append(folder / f"{number:05d}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for row in range((SHARD_MIB << 20) // MEMBER_BYTES):
                for extension, content in (("jpg", random.bytes(MEMBER_BYTES - 2048)), ("txt", b"caption")):
                    member = tarfile.TarInfo(f"{number:05d}{row:05d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return paths


def by_arrow(folder: str) -> None:
    """Reads the objects in parts, several at a time, and keeps nothing: what any reader costs."""
    for size, read in arrow_objects(folder):
        with ThreadPoolExecutor(buckets.CONNECTIONS) as pool:
            for _ in pool.map(lambda at, read=read: len(read(at)), parts(size)):
                pass


def by_arrow_to_files(folder: str) -> None:
    """Reads the objects in the same way, and writes each to a file: what any download costs."""
    target = local_copies.copies_folder()
    for number, (size, read) in enumerate(arrow_objects(folder)):
        with (target / str(number)).open("wb") as file, ThreadPoolExecutor(buckets.CONNECTIONS) as pool:
            os.posix_fallocate(file.fileno(), 0, size)
            list(pool.map(lambda at, read=read, file=file: os.pwrite(file.fileno(), read(at), at), parts(size)))


def arrow_objects(folder: str) -> Iterator[tuple[int, Callable[[int], bytes]]]:
    """Yields the size of each object, and what reads the part at an offset."""
    endpoint = os.environ[buckets.ENDPOINT].removeprefix("http://")
    files = fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1")
    for info in files.get_file_info(fs.FileSelector(folder.removeprefix("s3://"))):
        with files.open_input_file(info.path) as file:
            yield info.size, partial(file.read_at, buckets.PART_BYTES)


def parts(size: int) -> range:
    return range(0, size, buckets.PART_BYTES)


def by_copies(folder: str) -> None:
    """Downloads the objects to the cache."""
    for path in storage.path_of(folder).iterdir():
        os.fspath(path)


def by_files(folder: str) -> None:
    """Reads local files."""
    for path in Path(folder).iterdir():
        read_through(path)


def read_through(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(READ_BYTES):
            pass


def by_source(folder: str) -> None:
    """Reads the samples, as SCORE does."""
    for shard in storage.fetch_ahead(find_shards([folder]), lambda shard: shard.path):
        for _ in open_shard(shard, Layout()):
            pass


SIDES: dict[str, tuple[Callable[[str], None], bool]] = {
    "pyarrow.fs, read and dropped": (by_arrow, True),
    "pyarrow.fs, read and written": (by_arrow_to_files, True),
    "ours: copies": (by_copies, True),
    "ours: samples": (by_source, True),
    "local files": (by_files, False),
    "local files: samples": (by_source, False),
}
"""Name → what reads, and whether from the bucket."""


def compare(options: Namespace, folder: Path) -> None:
    """Prints the table."""
    shards = write_shards(folder, options.mib)
    gigabytes = sum(path.stat().st_size for path in shards) / 1e9
    with served_folder(folder) as remote:
        cores = sorted(os.sched_getaffinity(0))
        sides: dict[str, harness.Side] = {}
        for number, (name, (_, remote_side)) in enumerate(SIDES.items()):
            place = remote if remote_side else str(folder)
            sides[name] = (_run(name, place, cores, folder.with_name(f"{folder.name}-{number}")), None)
        runs = harness.take_turns(sides, options.rounds)
    cost: dict[str, float] = {}
    for name, its in runs.items():
        cost[name], wall = (
            float(np.median([getattr(run, what) for run in its])) / gigabytes for what in ("cpu", "wall")
        )
        harness.console.print(f"{name:32} {cost[name]:6.2f} CPU s/GB   {1 / wall:6.2f} GB/s")
    copies, written = cost["ours: copies"], cost["pyarrow.fs, read and written"]
    harness.console.print(f"copies / pyarrow that writes files: {copies / written:.2f}")
    ours, local = cost["ours: samples"], cost["local files: samples"]
    harness.console.print(f"samples, without the parsing of local files, / the same: {(ours - local) / written:.2f}")


def _run(name: str, place: str, cores: list[int], output: Path) -> Callable[[], harness.Run]:
    def run() -> harness.Run:
        copies = output.with_name(f"{output.name}-copies")
        os.environ[local_copies.COPIES] = str(copies)
        try:
            return harness.time_child("storage", (name, place), cores, output)
        finally:
            storage.remove_tree(copies)
            output.with_suffix(".log").unlink(missing_ok=True)

    return run


def main() -> int:
    parser = harness.new_parser(__doc__, rounds=3)
    parser.add_argument("--mib", type=int, default=512, help="size of all shards (default: 512)")
    options = parser.parse_args()
    if options.one:
        name, place = options.one
        harness.time_and_report(lambda: SIDES[name][0](place))
        return 0
    return harness.main(compare, options, ("moto",))


if __name__ == "__main__":
    sys.exit(main())
