"""One endpoint: its address, and HTTP connections that stay open between requests."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from socket import SHUT_RDWR
from time import time
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from danqing.engine.core.errors import DanqingError

KEYS = ("DANQING_VLM_KEY", "OPENAI_API_KEY")
"""Environment variables that can hold the key of the endpoint; the first that is set counts."""

ADDRESS = "write http://HOST:PORT/v1 or https://HOST/v1"
MIN_KEY = 8
"""Characters from which a key is also replaced in answers: shorter ones (EMPTY, none) are no secrets, but words that
captions can have."""


class UnreachableError(Exception):
    """No connection: nothing was sent."""


class BrokenError(Exception):
    """A connection ended, or was silent for too long, before the whole answer had arrived."""


class Response(NamedTuple):
    """An answer by HTTP: status, the seconds of Retry-After (0 without it) and the body."""

    status: int
    retry_after: float
    body: bytes


def key() -> str:
    """The key of the endpoints; empty if none is set. It is sent to them and goes nowhere else.

    Raises:
        DanqingError: it has characters that an HTTP header cannot hold.
    """
    name = next((name for name in KEYS if os.environ.get(name)), None)
    found = os.environ[name].strip() if name else ""
    if not (found.isascii() and (found.isprintable() or not found)):
        raise DanqingError(f"${name}: a key has only printable ASCII characters; set it again")
    return found


def parse_address(address: str) -> SplitResult:
    """Splits the address of an endpoint. The messages do not show it: it can have a password or a key in any place.

    Raises:
        DanqingError: no address of a server, or one with a user name, a query or a fragment.
    """
    if not address.isprintable() or " " in address.strip():
        raise DanqingError(f"--vlm-endpoint: an address has spaces or control characters; {ADDRESS}")
    try:
        parts = urlsplit(address.strip())
        parts.hostname, parts.port, (parts.hostname or "").encode("idna"), parts.path.encode("ascii")
    except ValueError:
        raise DanqingError(f"--vlm-endpoint: an address has a wrong host, port or path; {ADDRESS}") from None
    if parts.username is not None:
        raise DanqingError(f"--vlm-endpoint: leave the user name out of the address; set ${KEYS[0]} to the key")
    if parts.query or parts.fragment:
        raise DanqingError(f"--vlm-endpoint: leave ? and # out of the address; set ${KEYS[0]} to the key")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DanqingError(f"--vlm-endpoint: {ADDRESS}")
    return parts


class Endpoint:
    """One server. The lock of the `Client` that uses it guards all attributes but `address`.

    Args:
        address: `http://HOST:PORT/v1`; `/v1` is added to an address without a path.
        timeout: seconds without a byte after which a connection is closed.

    Attributes:
        outstanding: requests that wait for an answer.
        rests_until: `time.monotonic` before which no request is sent.
        refusals: answers that asked for a rest, and connections that failed, since the last success.

    Raises:
        DanqingError: no address of a server, or a key that cannot be sent.

    >>> Endpoint("http://127.0.0.1:8000", 60).address
    'http://127.0.0.1:8000/v1'
    """

    def __init__(self, address: str, timeout: float) -> None:
        parts = parse_address(address)
        self._host, self._port = parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/") or "/v1"
        self.address = f"{parts.scheme}://{parts.netloc}{self._path}"
        self._open = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._timeout, self._key = timeout, key()
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._idle: list[HTTPConnection] = []
        self._all: set[HTTPConnection] = set()
        self.outstanding, self.rests_until, self.refusals = 0, 0.0, 0

    def request(self, method: str, path: str, body: bytes | None = None) -> Response:
        """Sends a request; any thread may call it.

        Raises:
            UnreachableError: no connection.
            BrokenError: the connection ended before the answer did.
        """
        while True:
            try:
                connection, is_used = self._idle.pop(), True
            except IndexError:
                connection, is_used = self._connect(), False
            try:
                connection.request(method, f"{self._path}/{path}", body, self._headers)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, HTTPException) as problem:
                self._close(connection)
                if is_used and isinstance(problem, ConnectionError):  # the server closed it while it was idle
                    continue
                raise BrokenError(self.hidden(_words(problem, self._timeout))) from None
            if answer.will_close:
                self._close(connection)
            else:
                self._idle.append(connection)
            return Response(answer.status, _seconds(answer.getheader("Retry-After")), content)

    def _connect(self) -> HTTPConnection:
        connection = self._open(self._host, self._port, timeout=self._timeout)
        self._all.add(connection)
        try:
            connection.connect()
        except OSError as problem:
            self._close(connection)
            raise UnreachableError(_words(problem, self._timeout)) from None
        return connection

    def _close(self, connection: HTTPConnection) -> None:
        self._all.discard(connection)
        connection.close()

    def hidden(self, text: str) -> str:
        """The text of an answer without the key, which some servers repeat."""
        return text.replace(self._key, "…") if self._key else text

    def content(self, body: bytes) -> Any:
        """The JSON of an answer, without the key in its texts.

        Raises:
            ValueError: no JSON, or more deeply nested than it can be read.
        """
        try:
            found = json.loads(body)
            return self._without_key(found) if len(self._key) >= MIN_KEY else found
        except RecursionError:
            raise ValueError("nested too deeply") from None

    def _without_key(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.hidden(value)
        if isinstance(value, list):
            return [self._without_key(item) for item in value]
        if isinstance(value, dict):
            return {self.hidden(name): self._without_key(item) for name, item in value.items()}
        return value

    def close(self) -> None:
        """Closes all connections, which ends the waits of other threads for answers."""
        for connection in list(self._all):
            with suppress(OSError, AttributeError):  # it has ended, or has no socket yet
                connection.sock.shutdown(SHUT_RDWR)
            self._close(connection)
        self._idle.clear()


def _words(problem: Exception, timeout: float) -> str:
    if isinstance(problem, TimeoutError):
        return f"no answer for {timeout:g} s"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return str(problem) or type(problem).__name__


def _seconds(retry_after: str | None) -> float:
    """Reads Retry-After: a number of seconds, or a date (RFC 9110, 10.2.3).

    >>> _seconds("3"), _seconds(None), _seconds("soon"), _seconds("Wed, 21 Oct 2015 07:28:00 GMT")
    (3.0, 0.0, 0.0, 0.0)
    """
    try:
        seconds = float(retry_after or 0)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after or "").timestamp() - time()
        except (ValueError, TypeError):
            return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0
