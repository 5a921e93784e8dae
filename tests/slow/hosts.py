"""Compares the hosts that the kernel finds in hostile URLs with those of `host_of`, and the rates of both.

    python -m tests.slow.hosts --urls 2000000 --seed 5 --domains 1000000

Prints the number of URLs by outcome, and rows per second on one core: the kernels with their table, and `host_of` with
a set of strings, on URLs of an ordinary crawl and on hostile ones. Fails at the first difference.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from danqing.engine.core.device import open_device
from danqing.engine.core.text_column import TextColumn
from danqing.engine.stages.hosts import host_of
from danqing.engine.stages.source import find_blocked
from danqing.kernels.text.hosts import build_domains
from tests.engine.stages.test_source import hostile_urls, hosts_by_kernel

BATCH_ROWS = 2048


def ordinary_urls(count: int, domains: list[str], seed: int) -> list[str]:
    """Makes URLs of images, one in thirty of a listed domain."""
    draw = random.Random(seed)
    hosts = [f"img{draw.randrange(40)}.site{draw.randrange(30_000)}.com" for _ in range(30_000)] + domains[:1000]
    return [f"https://{draw.choice(hosts)}/uploads/{draw.randrange(10**9)}.jpg?w=640" for _ in range(count)]


def parents(host: str) -> list[str]:
    """Lists a domain and its parent domains."""
    parts = host.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def rate(find: Callable[[Any], list[int]], batches: list[Any]) -> tuple[float, int]:
    """Returns the rows per second of the process's time, and the number of blocked rows."""
    find(batches[0])  # compiles
    started = time.process_time()
    blocked = sum(sum(find(batch)) for batch in batches)
    return sum(map(len, batches)) / (time.process_time() - started), blocked


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", type=int, default=1_000_000)
    parser.add_argument("--domains", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()
    with open_device("cpu", threads=1) as device:
        undecided = without = 0
        for start in range(0, options.urls, 50_000):
            urls = hostile_urls(min(50_000, options.urls - start), options.seed + start)
            for url, found in zip(urls, hosts_by_kernel(device, urls), strict=True):
                if found is None:
                    undecided += 1
                elif found != host_of(url):
                    raise SystemExit(f"{url!r}: the kernel finds {found!r}, host_of {host_of(url)!r}")
                without += found == ""
        print(
            f"{options.urls:,} hostile URLs: no difference; {without:,} without a host, {undecided:,} left to host_of"
        )
        domains = [f"{number * 7919 % 10**9:x}-shop.example" for number in range(options.domains)]
        listed = set(domains)
        started = time.process_time()
        table = build_domains(pa.array(sorted(listed), pa.large_string()))
        print(f"table of {len(listed):,}: {time.process_time() - started:.2f} s, {table.nbytes / 1e6:.0f} MB")
        for name, urls in (
            ("ordinary", ordinary_urls(200_000, domains, options.seed)),
            ("hostile", hostile_urls(50_000, options.seed)),
        ):
            batches = [urls[start : start + BATCH_ROWS] for start in range(0, len(urls), BATCH_ROWS)]
            columns = list(map(TextColumn.of, batches))
            by_kernel = rate(lambda batch: find_blocked(device, batch, table).tolist(), columns)
            in_python = rate(lambda batch: [not listed.isdisjoint(parents(host_of(url))) for url in batch], batches)
            assert by_kernel[1] == in_python[1]
            print(f"{name}: kernel {by_kernel[0]:,.0f} rows/s, Python {in_python[0]:,.0f}; {by_kernel[1]:,} blocked")


if __name__ == "__main__":
    main()
