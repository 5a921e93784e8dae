"""Where a pair comes from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from engine.batch import Batch
from engine.errors import DanqingError
from engine.stages.base import Stage


class Source(Stage):
    """`blocked_source`: 1 if the URL's domain, or a parent of it, is on the block list."""

    name = "source"
    needs = ("url",)
    produces = {"blocked_source": pa.int8()}

    def __call__(self, batch: Batch) -> None:
        blocked = self.context.blocked_domains
        batch["blocked_source"] = np.array(
            [any(domain in blocked for domain in _domains(url)) for url in batch["url"]], np.int8
        )


def _domains(url: str | None) -> Iterable[str]:
    """`https://a.b.example/x` → a.b.example, b.example, example."""
    try:
        host = (urlsplit(url or "").hostname or "").rstrip(".")
    except ValueError:  # crawled URLs are not always URLs
        host = ""
    parts = host.split(".")
    return (".".join(parts[start:]) for start in range(len(parts))) if host else ()


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
