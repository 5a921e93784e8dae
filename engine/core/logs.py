"""The engine's logger, and its records as lines of JSON.

A run adds a handler that writes its run.log (`engine.run.folder`). Records that machines read have `attributes`, whose
names follow OpenTelemetry where it has one; `event` makes the argument `extra` of such a record.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from danqing.engine.core.escape import escaped

log = logging.getLogger("danqing")

SEVERITY_NUMBERS = {logging.DEBUG: 5, logging.INFO: 9, logging.WARNING: 13, logging.ERROR: 17, logging.CRITICAL: 21}
"""Level → OpenTelemetry's SeverityNumber."""


def event(name: str, **attributes: Any) -> dict[str, Any]:
    """Returns the argument `extra` of a call of the logger.

    Args:
        name: what happened, for example `shard.scored`; the record's event name is `danqing.NAME`.
        attributes: JSON values; `danqing.` is put before their names.
    """
    return {
        "event_name": f"danqing.{name}",
        "attributes": {f"danqing.{key}": value for key, value in attributes.items()},
    }


def say(message: str, level: int = logging.INFO, **attributes: Any) -> None:
    """Logs a message, and prints it to stderr, unless the records are written there as JSON or by another process."""
    log.log(level, "%s", message, extra={"is_said": True, "attributes": attributes})
    if not any(isinstance(handler, (_Stderr, _Sender)) for handler in log.handlers):
        print(f"danqing: {escaped(message)}", file=sys.stderr, flush=True)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object, with the fields of OpenTelemetry's log data model."""

    def __init__(self, version: str) -> None:
        super().__init__()
        self._resource = {"service.name": "danqing", "service.version": version, "host.name": socket.gethostname()}

    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "severity_text": record.levelname,
            "severity_number": SEVERITY_NUMBERS.get(record.levelno, 0),
            "body": record.getMessage(),
            "resource": {**self._resource, "process.pid": os.getpid()},
        }
        if name := getattr(record, "event_name", None):
            content["event_name"] = name
        attributes = dict(getattr(record, "attributes", {}))
        if record.exc_info and (problem := record.exc_info[1]):
            attributes |= {"exception.type": type(problem).__name__, "exception.message": str(problem)}
        return json.dumps(content | ({"attributes": attributes} if attributes else {}), ensure_ascii=True)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`: `native_stderr_to` replaces it while descriptor 2 is a file."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """Does nothing; the constructor of the base class assigns the stream."""


@contextmanager
def json_lines_on_stderr(version: str) -> Iterator[None]:
    """Writes every record as a line of JSON to stderr, during a `with` block; also the error that ends the block."""
    handler = _Stderr()
    handler.setFormatter(JsonFormatter(version))
    with handled_by(handler):
        try:
            yield
        except Exception as problem:
            log.error("%s", problem, exc_info=problem)
            raise


@contextmanager
def records_to(send: Callable[[int, str, Mapping[str, Any]], None]) -> Iterator[None]:
    """Calls a function with every record, during a `with` block: with its level, its text and the argument `extra`.

    A worker sends them to the process that writes the log (`log_worker_record`), which also prints what is said.
    """
    with handled_by(_Sender(send)):
        yield


class _Sender(logging.Handler):
    """Calls a function with every record, see `records_to`."""

    def __init__(self, send: Callable[[int, str, Mapping[str, Any]], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        names = ("event_name", "attributes", "is_said")
        extra = {name: getattr(record, name) for name in names if hasattr(record, name)}
        self._send(record.levelno, record.getMessage(), extra)


def log_worker_record(worker: str, level: int, text: str, extra: Mapping[str, Any]) -> None:
    """Logs a record from a worker (`records_to`) with the worker's name, and prints it if the worker has said it."""
    attributes, line = {**extra.get("attributes", {}), "danqing.worker": worker}, f"{text} (worker {worker})"
    if extra.get("is_said"):
        say(line, level, **attributes)
    else:
        log.log(level, "%s", line, extra={**extra, "attributes": attributes})


@contextmanager
def handled_by(handler: logging.Handler) -> Iterator[None]:
    """Adds a handler to the engine's logger during a `with` block, and closes it at the end."""
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
