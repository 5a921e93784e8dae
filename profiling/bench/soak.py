"""Soak: scores shards from and to an S3 server on a Ray cluster of this machine, and kills workers at random times.

    python -m danqing.profiling.bench.soak --minutes 30 --workers 2

Prints how many workers died, whether every shard that the driver reports as scored has all its rows, and how memory,
open descriptors and threads of the driver and the workers grow per hour: the slope of a line through the samples,
within each process. A process's first `WARMING_SECONDS` do not count, in which it loads models and compiled kernels
and its allocators grow. The oldest worker is not killed, so that its growth is seen over the whole time.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.local_copies import COPIES
from danqing.engine.core.storage import RemotePath, forget
from danqing.engine.demo.crawl import build_crawl
from danqing.engine.run.folder import Run
from danqing.profiling.bench.s3_server import s3_bucket

SHARDS_OF_CRAWL, CONNECTIONS = 32, 4
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


def uid_of(shard: int, row: int) -> str:
    """The uid of a generated row, which no other row has."""
    return f"{shard:08x}{row:024x}"


def with_uids(path: Path) -> tuple[bytes, int]:
    """Returns a shard of the crawl with the uids of shard 0 in it, and the number of its rows."""
    written, rows = io.BytesIO(), 0
    with tarfile.open(path) as tar, tarfile.open(fileobj=written, mode="w") as out:
        for member in tar:
            content = tar.extractfile(member).read()  # type: ignore[union-attr]
            if member.name.endswith(".json"):
                content = json.dumps(json.loads(content) | {"uid": uid_of(0, rows)}).encode()
                rows += 1
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return written.getvalue(), rows


def upload_shards(folder: Path, bucket: RemotePath, count: int) -> list[int]:
    """Uploads `count` shards, copies of those of the crawl with uids of their own; returns the rows of each."""
    made = [with_uids(Path(path)) for path in build_crawl(folder, SHARDS_OF_CRAWL)]

    def send(number: int) -> int:
        content, rows = made[number % len(made)]
        file = folder / f"{number:06d}.part"
        file.write_bytes(content.replace(b'"uid": "%08x' % 0, b'"uid": "%08x' % number))
        bucket.bucket.upload(file, f"in/{number:06d}.tar")
        file.unlink()
        return rows

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(send, range(count)))


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
    command += ["--recipe", str(folder / "soak.yaml"), "--device", "cpu", "--threads", "1", "--log-format", "json"]
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
    """The worker processes, the oldest first."""
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
                chosen = chance.choice(workers[1:])
                if chosen.cmdline()[0].endswith(".do"):  # the method that Ray runs: the worker has a shard
                    chosen.kill()
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


def events(log: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields name and attributes of the events in a log of `--log-format json`."""
    for line in log.read_text().splitlines():
        with suppress(ValueError):  # Ray prints lines of its own
            record = json.loads(line)
            yield record.get("event_name", ""), record.get("attributes", {})


def broken_shards(out: RemotePath, reported: Iterable[str], rows: list[int]) -> list[str]:
    """Names the shards that are reported as scored and have wrong scores.

    Their rows must be those that were uploaded, with the scores of every other shard of the same pairs. Scores are read
    by name, since moto lists thousands of objects slowly.
    """
    run = Run.open(out)
    shards = {shard.name: shard for shard in run.shards}

    def scores_of(name: str) -> tuple[str, pa.Table | None]:
        with suppress(FileNotFoundError, pa.ArrowException):
            return name, pq.read_table(pa.BufferReader(run.scores_path(shards[name].number).read_bytes()))
        return name, None

    broken, first = [], dict[int, pa.Table]()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for name, table in pool.map(scores_of, sorted(set(reported))):
            number = int(name)
            if table is None or table["uid"].to_pylist() != [uid_of(number, row) for row in range(rows[number])]:
                broken.append(name)
                continue
            scores = table.drop_columns(["shard", "key", "uid"])
            whole = set(table["shard"].to_pylist()) == {name}
            if not whole or not scores.equals(first.setdefault(number % SHARDS_OF_CRAWL, scores)):
                broken.append(name)
    return broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=2_500)
    parser.add_argument("--kill-every", type=float, default=60, metavar="SECONDS", help="mean time between two kills")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="write the samples of all processes, as JSON")
    options = parser.parse_args()
    with TemporaryDirectory() as scratch, s3_bucket() as bucket:
        folder = Path(scratch)
        os.environ[COPIES] = str(folder / "copies")
        rows = upload_shards(folder, bucket, options.shards)
        with driver(folder, bucket, options.workers) as process:
            own = process.pid
            samples, kills = watch(process, options.minutes * 60, options.kill_every)
            if process.poll():
                sys.exit(f"the driver ended with status {process.returncode}:\n{(folder / 'driver.log').read_text()}")
        if options.samples:
            options.samples.write_text(json.dumps(samples))
        forget()
        seen = list(events(folder / "driver.log"))
        scored = [attributes["danqing.shard"] for name, attributes in seen if name == "danqing.shard.scored"]
        found = {
            "seconds": samples[own][-1].at,
            "kills": kills,
            "losses_noticed": sum(name == "danqing.worker.lost" for name, _ in seen),
            "shards": len(set(scored)),
            "rows": sum(rows[int(name)] for name in set(scored)),
            "broken": broken_shards(bucket / "out", scored, rows),
            "driver_per_hour": slopes([samples.pop(own)]),
            "workers_per_hour": slopes(list(samples.values())),
            "workers": len(samples),
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
