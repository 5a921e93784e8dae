"""Bytes copied between the host and a device, tallied for each thread: who times a stage sees what it copied."""

from __future__ import annotations

import threading


class Copied(threading.local):
    """`up`: bytes this thread has sent to a device so far; `down`: bytes it has fetched."""

    up = 0
    down = 0


copied = Copied()
