"""URLs that can plainly be downloaded."""

from __future__ import annotations

from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings
from danqing.engine.select.usable import WEB_URL
from danqing.kernels.text.urls import plain_web_urls

SCHEMES = ("http", "https", "HTTP", "hTTps", "ftp", "httpx", "htt", " http", "例")
SEPARATORS = ("://", ":", ":/", "//", ":\\\\", ":///")
HOSTS = ("a", "", "~", "[", "例", "?", "#", "/", "\\", " ", "\x7f", "\x1f", "é", "@b", "a@", "a@b", "a:b@c@/", "a/@")


def test_plain_urls_are_urls_of_the_web(device: Device) -> None:
    texts = [f"{scheme}{separator}{host}" for scheme in SCHEMES for separator in SEPARATORS for host in HOSTS]
    texts += ["", None, "h", "http", "http://", "https://", "https:/", "httpss://a"]
    found = plain_web_urls(device, Strings.of(texts)).tolist()
    assert all(WEB_URL.match(text) for text, is_plain in zip(texts, found, strict=True) if is_plain)
    expected = {f"{scheme}://{host}" for scheme in SCHEMES[:4] for host in ("a", "~", "[", "a/@")}
    assert {text for text, is_plain in zip(texts, found, strict=True) if is_plain} == expected
