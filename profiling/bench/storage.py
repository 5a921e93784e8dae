"""Reading of shards from object storage: CPU seconds a GB, beside Arrow's file system alone and beside local files.

    python -m danqing.profiling.bench.storage --mib 512

An S3 server of its own process (moto) serves shards of random members; its CPU time is not counted. Each side is a
process with an empty cache.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pyarrow import fs

from danqing.engine.core import buckets, local_copies, storage
from danqing.engine.sources import Layout, find_shards, open_shard
from danqing.profiling.bench import harness
from danqing.profiling.bench.s3_server import s3_bucket

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
    endpoint = os.environ[buckets.ENDPOINT].removeprefix("http://")
    files = fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1")
    for info in files.get_file_info(fs.FileSelector(folder.removeprefix("s3://"))):
        with files.open_input_file(info.path) as file, ThreadPoolExecutor(buckets.CONNECTIONS) as pool:
            for _ in pool.map(lambda at, file=file: len(file.read_at(buckets.PART_BYTES, at)), parts(info.size)):
                pass


def parts(size: int) -> range:
    return range(0, size, buckets.PART_BYTES)


def by_copies(folder: str) -> None:
    """Downloads the objects to the cache, and reads the copies."""
    for path in storage.path_of(folder).iterdir():
        read_through(Path(os.fspath(path)))


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
    with s3_bucket() as bucket:
        for path in shards:
            bucket.bucket.upload(path, f"shards/{path.name}")
        cores = sorted(os.sched_getaffinity(0))
        sides: dict[str, harness.Side] = {}
        for number, (name, (_, remote_side)) in enumerate(SIDES.items()):
            place = f"{bucket}/shards" if remote_side else str(folder)
            sides[name] = (_run(name, place, cores, folder.with_name(f"{folder.name}-{number}")), None)
        runs = harness.take_turns(sides, options.rounds)
    for name, its in runs.items():
        cpu, wall = (float(np.median([getattr(run, what) for run in its])) / gigabytes for what in ("cpu", "wall"))
        harness.console.print(f"{name:32} {cpu:6.2f} CPU s/GB   {1 / wall:6.2f} GB/s")


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
