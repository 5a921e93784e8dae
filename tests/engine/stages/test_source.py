"""Block lists and the hosts of URLs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.strings import TextColumn
from danqing.engine.stages.base import Context
from danqing.engine.stages.hosts import host_of
from danqing.engine.stages.source import BlockedSource, read_blocklist
from danqing.trt_models.model_set import ModelSet


def listed(folder: Path, content: str) -> frozenset[str]:
    path = folder / "blocked.txt"
    path.write_text(content, encoding="utf-8")
    return read_blocklist(path)


def test_a_blocked_domain_blocks_its_subdomains(device: Device, tmp_path: Path) -> None:
    blocked = listed(
        tmp_path, "# bad sites\nBad.example\n*.spam.example  # all of it\n\n例子.中国\nxn--bcher-kva.example"
    )
    assert blocked == {"bad.example", "spam.example", "xn--fsqu00a.xn--fiqs8s", "xn--bcher-kva.example"}
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
    BlockedSource(Context(device, ModelSet({}), frozenset(), blocked))(batch)
    assert batch["blocked_source"].tolist() == [*expected.values(), 0]


@pytest.mark.parametrize(
    "url",
    [
        "HTTP://BAD.example", "http://bad.example./a", "http://bad.example:8080?a", "http://bad.example:/",
        " http://bad.example/a", "\ufeffhttp://bad.example/a", "http:\\\\bad.example\\a", "http:/bad.example/a",
        "http://ba\td.ex\nample/a", "http://good.example@bad.example/", "http://good.example:80@bad.example/",
        "http://bad。example/", "http://ｂａｄ．ｅｘａｍｐｌｅ/", "http://%62ad.example/", "http://bad.example\\@good.example/",
        "//bad.example/a", "bad.example/a.jpg", "s3://bad.example/a",
    ],
)  # fmt: skip
def test_every_spelling_of_a_host_is_one_host(url: str) -> None:
    assert host_of(url) == "bad.example"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://1.2.3.4:80/a", "1.2.3.4"), ("http://0x7f.1/", "127.0.0.1"), ("http://2130706433/", "127.0.0.1"),
        ("http://[0:0::0001]:80/a", "[::1]"), ("http://user@[::1]/", "[::1]"), ("http://faß.de/", "xn--fa-hia.de"),
        ("http://a_b.example/", "a_b.example"), ("http://xn--FSQU00A.xn--fiqs8s/", "xn--fsqu00a.xn--fiqs8s"),
        ("http://1.2.3.999/", ""), ("http://bad.example:80x/", ""), ("data:image/png;base64,AA", ""), ("http://", ""),
        ("http://\ud800.example/", ""), ("http://a b.example/", ""),
    ],
)  # fmt: skip
def test_addresses_and_international_names_have_one_spelling(url: str, host: str) -> None:
    assert host_of(url) == host


def test_addresses_and_hosts_files_are_listed(tmp_path: Path) -> None:
    assert listed(tmp_path, "\ufeff1.2.3.4\n::1\n[2001:DB8::0:1]\n") == {"1.2.3.4", "[::1]", "[2001:db8::1]"}
    hosts = "127.0.0.1 localhost\n::1 localhost ip6-loopback\n0.0.0.0 bad.example www.Worse.example # ads\n.dot.example"
    assert listed(tmp_path, hosts) == {"bad.example", "www.worse.example", "dot.example"}


@pytest.mark.parametrize(
    "line",
    ["https://bad.example/page", "||bad.example^", "bad.example,good.example", "*", "*.", "bad.example:80", "1.2.3.999",
     "bad example", "! a comment", "-bad.example", "a..example", "bad.*.example", "@@bad.example", "/ads/"],
)  # fmt: skip
def test_a_line_that_is_no_domain_is_an_error(tmp_path: Path, line: str) -> None:
    with pytest.raises(DanqingError, match=r"blocked\.txt:2: .*is not a domain"):
        listed(tmp_path, f"good.example\n{line}\n")
