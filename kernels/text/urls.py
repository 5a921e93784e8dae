"""Finds the URLs that can plainly be downloaded; the host examines only the others."""

from __future__ import annotations

from typing import Any

import numpy as np

from danqing.engine.core.strings import Strings
from danqing.kernels.portable import ArrayLauncher, inlined, kernel
from danqing.kernels.text.ascii import lower

HTTP, HTTPS = (np.frombuffer(prefix, np.uint8) for prefix in (b"http://", b"https://"))


def plain_web_urls(device: ArrayLauncher, text: Strings) -> Any:
    """Finds the rows that begin with `http://` or `https://`, in any case, and a host without user information.

    The host begins with a printable ASCII character.

    Args:
        device: holds the text.
        text: URLs as read.

    Returns:
        Bool (rows,), on the device.
    """
    out = device.xp.empty(text.rows, np.bool_)
    find_plain.launch(device, text.rows, text.of_one_type(), out)
    return out


@kernel
def find_plain(first, last, step, text, out):
    """Writes whether each row is a URL that `plain_web_urls` finds."""
    for row in range(first, last, step):
        at, stop = text.offsets[row], text.offsets[row + 1]
        host = at + max(prefix_size(text.data, at, stop, HTTP), prefix_size(text.data, at, stop, HTTPS))
        out[row] = at < host and host < stop and begins_host(text.data[host]) and not has_user(text.data, host, stop)


@inlined
def prefix_size(data, at, stop, prefix):
    """Returns the size of a prefix in lower case if data[at:stop] begins with it, in any case, else 0."""
    size = 0
    while size < prefix.size and at + size < stop and lower(data[at + size]) == prefix[size]:
        size += 1
    return size if size == prefix.size else 0


@inlined
def begins_host(byte):
    """Whether a byte is printable ASCII, but none that ends a host."""
    return byte > 0x20 and byte < 0x7F and byte != 0x3A and not ends_authority(byte)


@inlined
def ends_authority(byte):
    """Whether a byte is `#`, `/`, `?` or `\\`."""
    return byte == 0x23 or byte == 0x2F or byte == 0x3F or byte == 0x5C


@inlined
def has_user(data, at, stop):
    """Whether the authority that begins at data[at] has an `@`, after which the host begins, if there is one."""
    while at < stop and not ends_authority(data[at]):
        if data[at] == 0x40:
            return True
        at += 1
    return False
