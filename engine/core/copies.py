"""Counts the bytes copied between the host and a device, per thread, so that `Spans` can book them on a stage."""

from __future__ import annotations

import threading


class Copied(threading.local):
    """Counters of the current thread.

    Attributes:
        up: bytes copied from the host to a device.
        down: bytes copied from a device to the host.
    """

    up = 0
    down = 0


copied = Copied()
