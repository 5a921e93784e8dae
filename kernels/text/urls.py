"""Finds the URLs that can plainly be downloaded, so that only doubtful ones are looked at on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from danqing.engine.core.strings import Strings
from danqing.kernels.portable import ArrayLauncher, inlined, kernel
from danqing.kernels.text.cleaning import of_one_type


def plain_web_urls(device: ArrayLauncher, text: Strings) -> Any:
    """Finds the rows that begin with `http://` or `https://`, in any case, and a printable ASCII character of a host.

    Args:
        device: holds the text.
        text: URLs as read.

    Returns:
        Bool (rows,), on the device.
    """
    out = device.xp.empty(text.rows, np.bool_)
    find_plain.launch(device, text.rows, of_one_type(text), out)
    return out


@kernel
def find_plain(first, last, step, text, out):
    for row in range(first, last, step):
        at, stop = text.offsets[row], text.offsets[row + 1]
        out[row] = False
        if stop - at > 8 and lower(text.data[at + 4]) == 0x73:  # s of https
            host = at + 8
            colon = at + 5
        else:
            host = at + 7
            colon = at + 4
        if host < stop and is_http(text.data, at) and is_authority(text.data, colon):
            byte = text.data[host]
            out[row] = byte > 0x20 and byte < 0x7F and byte != 0x23 and byte != 0x2F and byte != 0x3F and byte != 0x5C


@inlined
def lower(byte):
    """Returns an ASCII letter in lower case."""
    return byte | 0x20


@inlined
def is_http(data, at):
    """Whether `http` stands at data[at], in any case."""
    is_first = lower(data[at]) == 0x68 and lower(data[at + 1]) == 0x74
    return is_first and lower(data[at + 2]) == 0x74 and lower(data[at + 3]) == 0x70


@inlined
def is_authority(data, at):
    """Whether `://` stands at data[at]."""
    return data[at] == 0x3A and data[at + 1] == 0x2F and data[at + 2] == 0x2F
