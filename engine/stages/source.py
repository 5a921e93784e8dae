"""Block list of the domains that pictures come from."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from pathlib import Path

import numpy as np

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import produced
from danqing.engine.core.errors import DanqingError
from danqing.engine.stages.base import Stage
from danqing.engine.stages.hosts import host_of, normal_host


class BlockedSource(Stage):
    """`blocked_source`: 1 if the URL's domain or one of its parent domains is on the block list, else 0."""

    name = "source"
    needs = ("url",)
    produces = produced("blocked_source")

    def __call__(self, batch: Batch) -> None:
        blocked = self.context.blocked_domains
        hosts = map(host_of, batch["url"].to_pylist()) if blocked else ()
        flags = [not blocked.isdisjoint(with_parents(host)) for host in hosts] or [False] * len(batch)
        batch["blocked_source"] = np.array(flags, np.int8)


@lru_cache(65536)  # a crawl has many URLs per host
def with_parents(host: str) -> tuple[str, ...]:
    """Lists a domain and its parent domains.

    >>> with_parents("a.b.example")
    ('a.b.example', 'b.example', 'example')
    """
    parts = host.split(".")
    return tuple(".".join(parts[start:]) for start in range(len(parts)))


def read_blocklist(path: Path) -> frozenset[str]:
    """Reads a block list, in UTF-8: a domain or an IP address per line, or the lines of a hosts file.

    `#` starts a comment. A domain stands for itself and its subdomains; `*.example.com` and `.example.com` mean the
    same as `example.com`, as in the lists of DNS blockers. Of a line of a hosts file (`0.0.0.0 example.com`), names
    without a dot (`localhost`) are left out.

    Returns:
        Domains and addresses as `hosts.normal_host` writes them.

    Raises:
        DanqingError: the file cannot be read, or a line is neither; names the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise DanqingError(f"{path}: cannot read the block list: {problem}") from None
    domains: set[str] = set()
    for number, line in enumerate(lines, 1):
        try:
            domains.update(_entries(line.partition("#")[0].split()))
        except ValueError:
            raise DanqingError(
                f"{path}:{number}: {line.strip()!r} is not a domain; write one domain or IP address per line, as "
                "example.com, or the lines of a hosts file"
            ) from None
    return frozenset(domains)


def _entries(words: list[str]) -> list[str]:
    """Returns the hosts that the words of a line name; raises ValueError if one is none."""
    if len(words) > 1:
        ipaddress.ip_address(words[0])
        return [normal_host(name) for name in words[1:] if "." in name]
    return [_entry(word) for word in words]


def _entry(word: str) -> str:
    """Returns the host that the only word of a line names; raises ValueError if it is none."""
    if ":" in word:
        return normal_host(word if word.startswith("[") else f"[{word}]")
    return normal_host(word.removeprefix("*").removeprefix(".") if word.startswith(("*.", ".")) else word)
