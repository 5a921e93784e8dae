"""Hosts of URLs in one spelling, by the rules of browsers (https://url.spec.whatwg.org/).

`http:\\\\BAD.example\\a`, `http://u:p@bad.example.:80/`, `http://ba<tab>d.example` and `http://bad。example` name one
host, as do `bücher.example` and `xn--bcher-kva.example`, or `127.1` and `0x7f000001`.

`kernels.text.hosts` does the same for all but two kinds of hosts, which are rare in a crawl: names that are not in
ASCII (UTS 46, punycode), and IPv6 addresses.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote

import idna

from danqing.kernels.text.hosts import MAX_HOST

_AUTHORITY = re.compile(
    r"(?:(?:https?|wss?|ftp):[/\\]*|[a-z][a-z0-9+.-]*:[/\\]{2}|[/\\]{2,})?([^/\\?#]*)", re.IGNORECASE | re.ASCII
)
_REMOVED = str.maketrans("", "", "\t\n\r")
_BLANK = "".join(map(chr, range(33))) + "\u00a0\u3000\ufeff"
_PORT = re.compile("[0-9]*")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f#%/:<>?@\[\\\]^|]")  # the standard's forbidden domain code points
_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
MAX_UNMAPPED = 4096
"""Maximum length of a host that UTS 46 is applied to. The mapping removes some characters, such as soft hyphens; the
time for its normal form grows with the square of the length if all of them are combining marks."""


def host_of(url: str | None) -> str:
    """Returns the host of a URL in lower case and punycode, or "" if there is none. A missing scheme is http.

    Unlike `normal_host`, it accepts every name that browsers look up: any ASCII characters but those that the URL
    standard forbids.

    >>> host_of("http:\\\\\\\\BAD.example\\\\a"), host_of("http://user@bad。example:80/"), host_of("http://[::0:1]/")
    ('bad.example', 'bad.example', '[::1]')
    """
    if not url:
        return ""
    found = _AUTHORITY.match(url.strip(_BLANK).translate(_REMOVED))
    host = found[1].rpartition("@")[2] if found else ""
    host, _, port = host.partition(":") if not host.startswith("[") else (host[: host.find("]") + 1], "", "")
    if not _PORT.fullmatch(port):
        return ""
    try:
        return _browsers_host(unquote(host))
    except ValueError:
        return ""


def normal_host(host: str) -> str:
    """Returns a domain in lower case and punycode, an IPv4 address with four numbers, or an IPv6 address in brackets.

    Raises:
        ValueError: this is neither a domain nor an address.

    >>> normal_host("例子。中国"), normal_host("BÜCHER.example."), normal_host("0x7f.1"), normal_host("[0:0::1]")
    ('xn--fsqu00a.xn--fiqs8s', 'xn--bcher-kva.example', '127.0.0.1', '[::1]')
    """
    name = _browsers_host(host)
    if not name.startswith("[") and not _NAME.fullmatch(name):
        raise ValueError(f"{host!r} is not a domain")
    return name


def _browsers_host(host: str) -> str:
    """Parses a host like browsers; raises ValueError if it is none, or one that the DNS cannot have."""
    if host.startswith("[") and host.endswith("]"):
        return f"[{ipaddress.IPv6Address(host[1:-1])}]"
    if not host.isascii() and len(host) <= MAX_UNMAPPED:  # also maps full-width characters and the other full stops
        host = idna.uts46_remap(host, std3_rules=False, transitional=False)
        if len(host) <= MAX_HOST:  # the time for punycode grows with the square of the length
            labels = host.split(".")
            host = ".".join(x if x.isascii() else "xn--" + x.encode("punycode").decode() for x in labels)
    name = host.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _ipv4_address(labels)
    if len(name) > MAX_HOST or not all(labels) or not name.isascii() or _FORBIDDEN.search(name):
        raise ValueError(f"{host[:MAX_HOST]!r} is not a domain")
    return name


def _ipv4_address(parts: list[str]) -> str:
    """Reads one to four numbers, the last of which fills the remaining bytes; raises ValueError if there are others."""
    *first, last = map(_ipv4_number, parts)
    if len(parts) > 4 or max(first, default=0) > 255 or last >= 256 ** (4 - len(first)):
        raise ValueError(f"{'.'.join(parts)[:MAX_HOST]!r} is not an IPv4 address")
    return ".".join(map(str, [*first, *last.to_bytes(4 - len(first), "big")]))


def _ipv4_number(part: str) -> int:
    if not _NUMBER.fullmatch(part):
        raise ValueError(f"{part[:MAX_HOST]!r} is not a number")
    if part.startswith("0x"):
        return int(part[2:] or "0", 16)
    return int(part, 8 if part.startswith("0") else 10)
