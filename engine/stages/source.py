"""Where a pair comes from."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import produced
from danqing.engine.core.errors import DanqingError
from danqing.engine.stages.base import Stage


class Source(Stage):
    """`blocked_source`: 1 if the URL's domain, or a parent of it, is on the block list."""

    name = "source"
    needs = ("url",)
    produces = produced("blocked_source")

    def __call__(self, batch: Batch) -> None:
        blocked = self.context.blocked_domains
        hosts = (_host(url) for url in batch["url"]) if blocked else ()
        flags = [any(domain in blocked for domain in domains(host)) for host in hosts] or [False] * len(batch)
        batch["blocked_source"] = np.array(flags, np.int8)


_HOST = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//(?:[^/?#]*@)?([^/?#:@\[]+)", re.IGNORECASE)


def _host(url: str | None) -> str:
    """The host of `https://user@a.b.example:80/x`, in lower case; `urlsplit` would take five times as long."""
    found = _HOST.match(url or "")
    return found[1].lower().rstrip(".") if found else ""


@lru_cache(65536)  # a crawl comes back to the same hosts
def domains(host: str) -> tuple[str, ...]:
    """a.b.example → a.b.example, b.example, example."""
    parts = host.split(".")
    return tuple(".".join(parts[start:]) for start in range(len(parts)))


def read_blocklist(path: Path) -> frozenset[str]:
    """One domain a line; `#` starts a comment.

    Raises:
        DanqingError: unreadable file, or a line that is not a domain; names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise DanqingError(f"{path}: cannot read the block list: {problem}") from None
    domains = set()
    for number, line in enumerate(lines, 1):
        domain = line.partition("#")[0].strip().lower().removeprefix("*.").strip(".")
        if not domain:
            continue
        if any(c in domain for c in "/: \t"):
            raise DanqingError(f"{path}:{number}: {domain!r} is not a domain; write it as example.com, one a line")
        domains.add(domain)
    return frozenset(domains)
