"""Soak: scores shards from and to an S3 server on a Ray cluster of this machine, and kills workers at random times.

    python -m danqing.profiling.bench.soak --minutes 30 --workers 2

Prints how many workers died, whether every scored shard is whole, and how memory, open descriptors and threads of the
driver and the workers grow per hour: the slope of a line through the samples, within each process. A process's first
`WARMING_SECONDS` do not count, in which it loads models and compiled kernels and its allocators grow. The oldest worker
is not killed, so that its growth is seen over the whole time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.local_copies import COPIES
from danqing.engine.core.storage import RemotePath, forget
from danqing.engine.demo.crawl import build_crawl
from danqing.engine.run.folder import Run
from danqing.profiling.bench.s3_server import s3_bucket

SHARDS_OF_CRAWL, UPLOADS = 16, 4
SAMPLE_SECONDS = 1.0
WARMING_SECONDS = 300.0
STOP_SECONDS = 60.0
RECIPE = """
recipe: soak
models: {text_safety: jionlp-pornography, caption_safety: jionlp-advertising}
criteria: {unsafe_text: {max: 0}, words: {min: 5, max: 60}, decodable: {min: 1}, laplacian_variance: {min: 100}}
"""


class Sample(NamedTuple):
    """One look at a process: seconds since the start, resident bytes, open descriptors, threads."""

    at: float
    memory: float
    descriptors: float
    threads: float


def upload_shards(folder: Path, bucket: RemotePath, count: int) -> int:
    """Uploads `count` shards, `SHARDS_OF_CRAWL` different ones in turn; returns the number of different ones."""
    made = [Path(path) for path in build_crawl(folder, SHARDS_OF_CRAWL)]
    with ThreadPoolExecutor(UPLOADS) as pool:
        sent = [
            pool.submit(bucket.bucket.upload, made[number % len(made)], f"in/{number:06d}.tar")
            for number in range(count)
        ]
    for upload in sent:
        upload.result()  # raises what it raised
    return len(made)


@contextmanager
def driver(folder: Path, bucket: RemotePath, workers: int) -> Iterator[psutil.Popen]:
    """Runs `danqing score --ray` during a `with` block, on a cluster of this machine with room for the workers."""
    (folder / "soak.yaml").write_text(RECIPE)
    code = (
        "import sys, ray; from danqing.engine.cli.main import main;"
        f"ray.init(num_cpus={workers}, num_gpus=0, log_to_driver=False, include_dashboard=False);"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "score", f"{bucket}/in/*.tar", "-o", f"{bucket}/out", "--ray", "local"]
    command += ["--recipe", str(folder / "soak.yaml"), "--device", "cpu", "--threads", "1", "--quiet"]
    command += ["--cache", str(folder / "copies")]
    with (folder / "driver.log").open("w") as log:
        process = psutil.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(psutil.TimeoutExpired, subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        if process.poll() is None:
            process.kill()


def workers_of(process: psutil.Popen) -> list[psutil.Process]:
    """The worker processes that score, the oldest first."""
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            if "ShardScorer" in " ".join(child.cmdline()):
                found.append(child)
    return sorted(found, key=psutil.Process.create_time)


def watch(process: psutil.Popen, seconds: float, mean_seconds: float) -> tuple[dict[int, list[Sample]], int]:
    """Samples the driver and its workers, and kills one of these, but not the oldest, at random times.

    Args:
        process: the driver.
        seconds: how long, if the driver does not end before.
        mean_seconds: mean time between two kills.

    Returns:
        Process id → its samples, and the number of kills.
    """
    samples: dict[int, list[Sample]] = {}
    kills, started = 0, time.monotonic()
    chance = random.Random(0)
    following = started + chance.expovariate(1 / mean_seconds)
    while time.monotonic() - started < seconds and process.poll() is None:
        workers = workers_of(process)
        for seen in [process, *workers]:
            with suppress(psutil.Error):
                at, memory = time.monotonic() - started, float(seen.memory_info().rss)
                figures = Sample(at, memory, float(seen.num_fds()), float(seen.num_threads()))
                samples.setdefault(seen.pid, []).append(figures)
        if time.monotonic() > following and workers[1:]:
            with suppress(psutil.Error):
                chance.choice(workers[1:]).kill()
                kills += 1
            following = time.monotonic() + chance.expovariate(1 / mean_seconds)
        time.sleep(SAMPLE_SECONDS)
    return samples, kills


def slopes(series: list[list[Sample]]) -> dict[str, float]:
    """Growth per hour of each figure, by least squares within the processes; empty without enough samples."""
    warm = [[sample for sample in one if sample.at - one[0].at > WARMING_SECONDS] for one in series]
    centred = [np.array(one) - np.mean(one, axis=0) for one in warm if len(one) > 2]
    if not centred:
        return {}
    joined = np.concatenate(centred)
    rates = joined[:, 0] @ joined[:, 1:] / (joined[:, 0] @ joined[:, 0]) * 3600
    return {"mb": rates[0] / 1e6, "descriptors": rates[1], "threads": rates[2]}


def broken_shards(out: RemotePath, kinds: int) -> tuple[int, list[str]]:
    """Counts the scored shards, and names those whose rows differ from those of the first copy of the same file."""
    run, first = Run.open(out), dict[int, pa.Table]()
    scored, broken = 0, list[str]()
    there = {path.name for path in (out / "scores").iterdir()}  # one listing, not a request a shard
    for shard in run.shards:
        path = run.scores_path(shard.number)
        if path.name in there:
            scored += 1
            table = pq.read_table(path).drop_columns(["shard"])
            if not table.equals(first.setdefault(shard.number % kinds, table)):
                broken.append(shard.name)
    return scored, broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=3_000)
    parser.add_argument("--kill-every", type=float, default=60, metavar="SECONDS", help="mean time between two kills")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="write the samples of all processes, as JSON")
    options = parser.parse_args()
    with TemporaryDirectory() as scratch, s3_bucket() as bucket:
        folder = Path(scratch)
        os.environ[COPIES] = str(folder / "copies")
        kinds = upload_shards(folder, bucket, options.shards)
        with driver(folder, bucket, options.workers) as process:
            own = process.pid
            samples, kills = watch(process, options.minutes * 60, options.kill_every)
        if options.samples:
            options.samples.write_text(json.dumps(samples))
        forget()
        scored, broken = broken_shards(bucket / "out", kinds)
        logs = "".join(path.read_text() for path in (bucket / "out" / "logs").iterdir())
        found = {
            "seconds": samples[own][-1].at,
            "kills": kills,
            "losses_noticed": logs.count(" is lost, "),
            "shards": scored,
            "broken": broken,
            "driver_per_hour": slopes([samples.pop(own)]),
            "workers_per_hour": slopes(list(samples.values())),
            "workers": len(samples),
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
