"""Block list of the domains that pictures come from."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import produced
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.text_column import TextColumn
from danqing.engine.stages.base import Stage
from danqing.engine.stages.hosts import host_of, normal_host
from danqing.kernels.text import hosts as kernels
from danqing.kernels.text.hosts import MAX_HOST, Domains

_END = "(?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
PLAIN_DOMAIN = rf"^(?:[A-Za-z0-9_]{_END}\.)+[A-Za-z_]{_END}$"
"""An ASCII domain with a dot, as nearly all lines of block lists are. RE2 checks a million of them in 0.1 s."""
LISTED_AS = r"^(?:(?:0\.0\.0\.0|127\.0\.0\.1)[ \t]+|\*?\.)"
"""Addresses that hosts files and lists of DNS blockers write before a domain."""


class BlockedSource(Stage):
    """`blocked_source`: 1 if the URL's domain or one of its parent domains is on the block list, else 0."""

    name = "source"
    needs = ("url",)
    produces = produced("blocked_source")

    def __call__(self, batch: Batch) -> None:
        device, blocked = self.context.device, self.context.blocked_domains
        none = np.zeros(len(batch), np.int8)
        batch["blocked_source"] = find_blocked(device, batch["url"], blocked) if blocked else none


def find_blocked(device: Device, urls: TextColumn, domains: Domains) -> np.ndarray:
    """Returns 1 for URLs whose host or a parent domain of it is in the table, else 0: int8 (rows,), on the host."""
    found = device.down(kernels.find_domains(device, kernels.find_hosts(device, urls.strings(device)), domains))
    undecided = np.flatnonzero(found == kernels.UNDECIDED)
    if len(undecided):
        hosts = kernels.listed_hosts(device, list(map(host_of, urls.take(undecided).to_pylist())))
        found[undecided] = device.down(kernels.find_domains(device, hosts, domains))
    return found


def read_blocklist(path: Path) -> pa.LargeStringArray:
    """Reads a block list, in UTF-8: a domain or an IP address per line, or the lines of a hosts file.

    `#` starts a comment. A domain stands for itself and its subdomains; `*.example.com` and `.example.com` mean the
    same as `example.com`, as in the lists of DNS blockers. Of a line of a hosts file (`0.0.0.0 example.com`), names
    without a dot (`localhost`) are left out.

    Returns:
        Domains and addresses as `hosts.normal_host` writes them, distinct and sorted.

    Raises:
        DanqingError: the file cannot be read, or a line is neither; names the file and the line.
    """
    try:
        text = pa.array([path.read_text(encoding="utf-8-sig")], pa.large_string())
    except (OSError, UnicodeDecodeError) as problem:
        raise DanqingError(f"{path}: cannot read the block list: {problem}") from None
    lines = pc.ascii_trim_whitespace(pc.split_pattern(text, "\n").flatten())
    plain = _is_plain(lines)
    numbers = np.flatnonzero(pc.invert(plain))
    bare = pc.replace_substring_regex(lines.take(pa.array(numbers)), LISTED_AS, "")
    listed = _is_plain(bare)
    names = [pc.ascii_lower(lines.filter(plain)), pc.ascii_lower(bare.filter(listed))]
    numbers = numbers[np.flatnonzero(pc.invert(listed))]
    others: set[str] = set()
    for number, line in zip(numbers.tolist(), lines.take(pa.array(numbers)).to_pylist(), strict=True):
        try:
            others.update(_entries(line.partition("#")[0].split()))
        except ValueError:
            raise DanqingError(
                f"{path}:{number + 1}: {line.strip()!r} is not a domain; write one domain or IP address per line, as "
                "example.com, or the lines of a hosts file"
            ) from None
    distinct = pa.concat_arrays([*names, pa.array(list(others), pa.large_string())]).unique()
    domains = distinct.take(pc.sort_indices(distinct))
    del text, lines, bare, names, distinct
    pa.default_memory_pool().release_unused()
    return domains


def _is_plain(lines: pa.LargeStringArray) -> pa.BooleanArray:
    return pc.and_(pc.match_substring_regex(lines, PLAIN_DOMAIN), pc.less_equal(pc.binary_length(lines), MAX_HOST))


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
