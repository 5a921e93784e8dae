"""Block lists and the hosts of URLs."""

from __future__ import annotations

import random
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.text_column import TextColumn
from danqing.engine.stages.base import Context
from danqing.engine.stages.hosts import host_of
from danqing.engine.stages.source import BlockedSource, find_blocked, read_blocklist
from danqing.kernels.text.hosts import UNDECIDED, build_domains, find_domains, find_hosts, listed_hosts
from danqing.trt_models.model_set import ModelSet


def listed(folder: Path, content: str) -> pa.LargeStringArray:
    path = folder / "blocked.txt"
    path.write_text(content, encoding="utf-8")
    return read_blocklist(path)


PARTS = [
    "http:", "https:", "HTTP:", "ftp:", "ws:", "wss:", "s3:", "file:", "data:", "hTtPs:", "a+b.c-1:", "javascript:",
    "/", "//", "\\", "\\\\", "@", ":", ".", "?", "#", "%", "[", "]", "-", "_", "^", "|", "<", "~", "!", ",", "::",
    ":80", ":8x", ":٣", " ", "\t", "\n", "\r", "\0", "\x1f", "\x7f", "\u00a0", "\u3000", "\ufeff", "\u00ad", "\u200b",
    "bad", "BAD", "example", "com", "www", "xn--fsqu00a", "xn--", "a" * 70, "ab." * 90, "user:pass", "İ", "ſ", "K", "ı",
    "0", "1", "9", "127", "256", "0x", "0x7f", "0X7F", "010", "08", "4294967295", "4294967296", "99999999999999999999",
    "1.2.3.4", "0.0.0.0.0", "1..2", "00000000000000000000000000000000001", "0x00000000000000000000000000000000001",
    "。", "．", "｡", "ｂａｄ", "１", "例子", "中国", "bücher", "ß", "\u0301", "\ufffd", "😀", "é", "é",
    "%2e", "%2E", "%41", "%62", "%zz", "%4", "%E4%BE%8B", "%c3%9f", "%00", "%2f", "%40", "%3A", "%5B", "%30", "%80",
    "[::1]", "[0:0::0001]", "[::ffff:1.2.3.4]", "[1]", "/a.jpg", "?q=http://bad.example", "#http://bad.example/",
]  # fmt: skip
"""Tokens of the grammar of URLs, and of what browsers remove, map, decode or refuse."""


def hostile_urls(count: int, seed: int) -> list[str]:
    """Makes random sequences of tokens; half of them begin like a URL."""
    draw = random.Random(seed)
    beginnings = ["", "", "", "//", "http://", "https://", "http:\\\\"]
    weights = [9 if (part.isascii() and part.isalnum()) or part == "." else 1 for part in PARTS]  # many have a host
    return [draw.choice(beginnings) + "".join(draw.choices(PARTS, weights, k=draw.randrange(8))) for _ in range(count)]


def hosts_by_kernel(device: Device, urls: list[str | None]) -> list[str | None]:
    """Returns the hosts that the kernel finds; None where it leaves the host to `host_of`."""
    hosts = find_hosts(device, TextColumn.of(urls).strings(device))
    spans = zip(hosts.begins.tolist(), hosts.lengths.tolist(), strict=True)
    return [bytes(hosts.data[at : at + size]).decode() if size != UNDECIDED else None for at, size in spans]


def test_the_kernel_finds_the_hosts_of_hostile_urls(device: Device) -> None:
    urls = hostile_urls(20_000, 1)
    found = hosts_by_kernel(device, urls)
    pairs = [(host, host_of(url)) for url, host in zip(urls, found, strict=True)]
    assert not [(url, *pair) for url, pair in zip(urls, pairs, strict=True) if pair[0] not in (None, pair[1])]
    undecided = [url for url, host in zip(urls, found, strict=True) if host is None]
    assert all(not unquote(url).isascii() or "[" in url for url in undecided)
    assert len(undecided) < 10_000 and len(set(found)) > 2000, (len(undecided), len(set(found)))


def test_a_blocked_domain_blocks_its_subdomains(device: Device, tmp_path: Path) -> None:
    blocked = listed(
        tmp_path, "# bad sites\nBad.example\n*.spam.example  # all of it\n\n例子.中国\nxn--bcher-kva.example"
    )
    assert set(blocked.to_pylist()) == {
        "bad.example",
        "spam.example",
        "xn--fsqu00a.xn--fiqs8s",
        "xn--bcher-kva.example",
    }
    expected = {
        "https://bad.example/a": 1,
        "http://x.y.BAD.example./": 1,
        "//spam.example": 1,
        "https://www.例子。中国/": 1,
        "http://BÜCHER.example": 1,
        "https://notbad.example": 0,
        "https://bad.example.org": 0,
        "https://good.example/?from=bad.example": 0,
        "http://[broken": 0,
        "": 0,
    }
    batch = Batch({"row": np.arange(len(expected) + 1), "url": TextColumn.of([*expected, None])})
    BlockedSource(Context(device, ModelSet({}), frozenset(), build_domains(blocked)))(batch)
    assert batch["blocked_source"].tolist() == [*expected.values(), 0]


def test_hosts_are_found_in_a_large_table_and_equal_hashes_do_not_block(device: Device) -> None:
    names = [f"a{number}.example" for number in range(5000)]
    domains = build_domains(pa.array(sorted(names), pa.large_string()))
    hosts = [*names, *(f"x.y.{name}" for name in names), "example", "a.example", "a5000.example", "xa1.example", ""]
    expected = [1] * 10_000 + [0] * 5
    assert find_domains(device, listed_hosts(device, hosts), domains).tolist() == expected
    data = domains.data.copy()
    data[domains.offsets[17]] += 1  # the table has the name's hash, but other bytes
    data.flags.writeable = False  # Numba compiles kernels for writable tables separately
    found = find_domains(device, listed_hosts(device, hosts), domains._replace(data=data))
    assert np.flatnonzero(found != expected).tolist() == [
        row
        for row, host in enumerate(hosts)
        if host.endswith(sorted(names)[17]) and host.removesuffix(sorted(names)[17])[-1:] in ("", ".")
    ]


def test_long_hosts_take_linear_time(device: Device) -> None:
    urls = [
        "http://" + "a." * 1_000_000 + "bad.example", "http://" + "é" * 1_000_000 + ".bad.example",
        "http://" + "\u0301\u0323" * 500_000, "http://" + "%C3%A9" * 300_000, "0x" * 500_000, "1" * 1_000_000,
    ]  # fmt: skip
    domains = build_domains(pa.array(["bad.example"], pa.large_string()))
    started = time.perf_counter()
    assert find_blocked(device, TextColumn.of(urls), domains).tolist() == [0] * 6
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    "url",
    [
        "HTTP://BAD.example", "http://bad.example./a", "http://bad.example:8080?a", "http://bad.example:/",
        " http://bad.example/a", "\ufeffhttp://bad.example/a", "http:\\\\bad.example\\a", "http:/bad.example/a",
        "http://ba\td.ex\nample/a", "http://good.example@bad.example/", "http://good.example:80@bad.example/",
        "http://bad。example/", "http://ｂａｄ．ｅｘａｍｐｌｅ/", "http://%62ad.example/", "http://bad.example\\@good.example/",
        "//bad.example/a", "bad.example/a.jpg", "s3://bad.example/a", "///bad.example/a", "\\\\/bad.example",
    ],
)  # fmt: skip
def test_every_spelling_of_a_host_is_one_host(url: str, device: Device) -> None:
    assert host_of(url) == "bad.example"
    domains = build_domains(pa.array(["bad.example"], pa.large_string()))
    assert find_blocked(device, TextColumn.of([None, url, "http://good.example"]), domains).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://1.2.3.4:80/a", "1.2.3.4"), ("http://0x7f.1/", "127.0.0.1"), ("http://2130706433/", "127.0.0.1"),
        ("http://[0:0::0001]:80/a", "[::1]"), ("http://user@[::1]/", "[::1]"), ("http://faß.de/", "xn--fa-hia.de"),
        ("http://a_b.example/", "a_b.example"), ("http://xn--FSQU00A.xn--fiqs8s/", "xn--fsqu00a.xn--fiqs8s"),
        ("http://1.2.3.999/", ""), ("http://bad.example:80x/", ""), ("data:image/png;base64,AA", ""), ("http://", ""),
        ("http://\ud800.example/", ""), ("http://a b.example/", ""), ("http://-a!.bad.example/", "-a!.bad.example"),
        ("http:\\\\-a-.bad.example", "-a-.bad.example"), ("http://ſ.example", "s.example"), ("http://0x/", "0.0.0.0"),
        ("http://a.09/", ""), ("http://1.2.3.4.5/", ""), ("http://0001.2.3.4./", "1.2.3.4"), ("http://a:٣/", ""),
        ("http://a..example/", ""), ("http://" + "a." * 127 + "example", ""), ("/bad.example", ""),
    ],
)  # fmt: skip
def test_addresses_and_international_names_have_one_spelling(url: str, host: str, device: Device) -> None:
    assert host_of(url) == host
    assert hosts_by_kernel(device, [url])[0] in (host, None)


def test_addresses_and_hosts_files_are_listed(tmp_path: Path) -> None:
    assert listed(tmp_path, "\ufeff1.2.3.4\n::1\n[2001:DB8::0:1]\n").to_pylist() == [
        "1.2.3.4",
        "[2001:db8::1]",
        "[::1]",
    ]
    hosts = "127.0.0.1 localhost\n::1 localhost ip6-loopback\n0.0.0.0 bad.example www.Worse.example # ads\n.dot.example"
    assert listed(tmp_path, hosts).to_pylist() == ["bad.example", "dot.example", "www.worse.example"]


@pytest.mark.parametrize(
    "line",
    ["https://bad.example/page", "||bad.example^", "bad.example,good.example", "*", "*.", "bad.example:80", "1.2.3.999",
     "bad example", "! a comment", "-bad.example", "a..example", "bad.*.example", "@@bad.example", "/ads/"],
)  # fmt: skip
def test_a_line_that_is_no_domain_is_an_error(tmp_path: Path, line: str) -> None:
    with pytest.raises(DanqingError, match=r"blocked\.txt:2: .*is not a domain"):
        listed(tmp_path, f"good.example\n{line}\n")
