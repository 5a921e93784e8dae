"""Files that name the addresses at which the workers of a host serve their metrics.

Prometheus reads them (`file_sd_configs`), and the image's health check queries the workers in them. Each worker has one
file: DANQING_CACHE/metrics/HOST-PORT.json.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import write_json

ANSWER_SECONDS = 5.0
"""Timeout of a query. The metrics thread can be slow, because it waits for the interpreter's lock."""


@contextmanager
def announce_worker(folder: Path, address: str, port: int, device: str) -> Iterator[None]:
    """Keeps a file of this worker in `folder` during a `with` block.

    First removes the files that killed workers of this host left.

    Args:
        folder: holds the files of all workers; created if it does not exist.
        address: the address that the worker listens at. If it is every address, the file has the host's name.
        port: the port that the worker listens at.
        device: value of the label `device` on all metrics of this worker.

    Raises:
        DanqingError: the file cannot be written.
    """
    host = socket.gethostname()
    name = host if address in ("", "0.0.0.0", "::") else f"[{address}]" if ":" in address else address
    path = folder / f"{host}-{port}.json"
    try:
        for left, target in _workers_of(host, folder):
            if target is None or not _listens(target):
                left.unlink(missing_ok=True)
        write_json(path, [{"targets": [f"{name}:{port}"], "labels": {"device": device}}])
    except OSError as problem:
        raise DanqingError(f"--metrics-port {port}: Prometheus finds this worker by {path}: {problem}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def silent_workers(folder: Path) -> list[str]:
    """Lists, as HOST:PORT, the workers of this host that have a file in `folder` and do not answer."""
    return [target for _, target in _workers_of(socket.gethostname(), folder) if target and not _answers(target)]


def _workers_of(host: str, folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Yields the files of a host's workers, each with HOST:PORT, or None for a damaged file."""
    for path in sorted(folder.glob("*.json")):
        if path.stem.rpartition("-")[0] != host:
            continue
        try:
            ((target,),) = (group["targets"] for group in json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:  # the worker that wrote it has removed it
            continue
        except (ValueError, TypeError, KeyError):
            target = None
        yield path, target if isinstance(target, str) else None


def _listens(target: str) -> bool:
    """Returns whether a process listens at the port. A busy one does not answer; without one, the host refuses."""
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
