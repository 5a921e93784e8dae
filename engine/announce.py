"""Files that say where the workers of a host serve their metrics.

Prometheus reads them (`file_sd_configs`), and the image's health check asks the workers they name. One file a worker,
in DANQING_CACHE/metrics/: HOST-PORT.json.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from engine.errors import DanqingError
from engine.files import write_json

ANSWER_SECONDS = 5.0
"""Time a worker has to answer: the thread that serves metrics waits for the interpreter's lock like all others."""


@contextmanager
def announced(folder: Path, address: str, port: int, device: str) -> Iterator[None]:
    """Keeps a file of this worker in `folder` for the length of a `with` block.

    First removes the files that killed workers of this host have left.

    Args:
        address: what the worker listens at. Where that is every address of the host, the file has the host's name.
        port: the port it listens at.
        device: the label `device` that Prometheus gives to all figures of this worker.

    Raises:
        DanqingError: the file cannot be written.
    """
    host = socket.gethostname()
    name = host if address in ("", "0.0.0.0", "::") else f"[{address}]" if ":" in address else address
    path = folder / f"{host}-{port}.json"
    try:
        for left, target in _workers_of(host, folder):
            if not _listens(target):
                left.unlink(missing_ok=True)
        write_json(path, [{"targets": [f"{name}:{port}"], "labels": {"device": device}}])
    except OSError as problem:
        raise DanqingError(f"--metrics-port {port}: Prometheus finds this worker by {path}: {problem}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def silent_workers(folder: Path) -> list[str]:
    """HOST:PORT of the workers that have a file in `folder`, are on this host, and do not answer."""
    return [target for _, target in _workers_of(socket.gethostname(), folder) if not _answers(target)]


def _workers_of(host: str, folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.glob("*.json")):
        if path.stem.rpartition("-")[0] != host:
            continue
        try:
            ((target,),) = (group["targets"] for group in json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:  # its worker has just ended
            continue
        yield path, target


def _listens(target: str) -> bool:
    """Whether there is a process at the port, however busy; if not, its host refuses the connection at once."""
    connection = HTTPConnection(target, timeout=ANSWER_SECONDS)
    try:
        connection.connect()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    finally:
        connection.close()
    return True


def _answers(target: str) -> bool:
    connection = HTTPConnection(target, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
