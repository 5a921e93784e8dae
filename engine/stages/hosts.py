"""Hosts of URLs in one spelling, by the rules of browsers (https://url.spec.whatwg.org/).

`http:\\\\BAD.example\\a`, `http://u:p@bad.example.:80/`, `http://ba<tab>d.example` and `http://bad。example` name one
host, as do `bücher.example` and `xn--bcher-kva.example`, or `127.1` and `0x7f000001`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import unquote

import idna

# Most URLs: an ASCII host whose last label is no number, an optional port, then the end or the path. Five times as
# fast as `urlsplit`.
_COMMON = re.compile(
    r"(?:[a-z][a-z0-9+.-]*:)?//((?:[a-z0-9_-]+\.)*[a-z_][a-z0-9_-]*)\.?(?::[0-9]*)?(?:[/?#\\]|\Z)", re.IGNORECASE
)
_AUTHORITY = re.compile(r"(?:(?:https?|wss?|ftp):[/\\]*|(?:[a-z][a-z0-9+.-]*:)?[/\\]{2})?([^/\\?#]*)", re.IGNORECASE)
_REMOVED = str.maketrans("", "", "\t\n\r")
_BLANK = "".join(map(chr, range(33))) + "\u00a0\u3000\ufeff"
_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


def host_of(url: str | None) -> str:
    """Returns the host of a URL as `normal_host` writes it, or "" if there is none. A missing scheme is http.

    >>> host_of("http:\\\\\\\\BAD.example\\\\a"), host_of("http://user@bad。example:80/"), host_of("http://[::0:1]/")
    ('bad.example', 'bad.example', '[::1]')
    """
    if not url:
        return ""
    common = _COMMON.match(url)
    if common:
        return common[1].lower()
    found = _AUTHORITY.match(url.strip(_BLANK).translate(_REMOVED))
    host = found[1].rpartition("@")[2] if found else ""
    host, _, port = host.partition(":") if not host.startswith("[") else (host[: host.find("]") + 1], "", "")
    if port and not port.isdigit():
        return ""
    try:
        return normal_host(unquote(host))
    except ValueError:
        return ""


def normal_host(host: str) -> str:
    """Returns a domain in lower case and punycode, an IPv4 address with four numbers, or an IPv6 address in brackets.

    Raises:
        ValueError: this is neither a domain nor an address.

    >>> normal_host("例子。中国"), normal_host("BÜCHER.example."), normal_host("0x7f.1"), normal_host("[0:0::1]")
    ('xn--fsqu00a.xn--fiqs8s', 'xn--bcher-kva.example', '127.0.0.1', '[::1]')
    """
    if host.startswith("[") and host.endswith("]"):
        return f"[{ipaddress.IPv6Address(host[1:-1])}]"
    if not host.isascii():  # UTS 46 also maps full-width characters and the other full stops
        mapped = idna.uts46_remap(host, std3_rules=False, transitional=False)
        host = ".".join(
            label if label.isascii() else "xn--" + label.encode("punycode").decode() for label in mapped.split(".")
        )
    name = host.lower().removesuffix(".")
    if _NUMBER.fullmatch(name):
        try:
            return socket.inet_ntoa(socket.inet_aton(name))
        except OSError:
            raise ValueError(f"{host!r} is not an IPv4 address") from None
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise ValueError(f"{host!r} is not a domain")
    return name
