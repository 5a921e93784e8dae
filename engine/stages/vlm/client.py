"""Asks endpoints many questions concurrently, and retries failures.

A failure is attributed to the row or to the endpoint. After `MAX_FAILURES` failures (5xx, 408, 409, an answer that
breaks off, is no JSON or has no choices) the row fails, if the endpoint still lists its models; other 4xx fail it at
once. An endpoint that cannot be reached, answers 429, or does not list its models gets no requests for a while, and the
row waits. If nothing succeeds for `Timing.dead` seconds, or `MAX_GIVEN_UP` rows fail one after the other, the client
raises: a fault of the endpoint must not be stored as an error of every row.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.escape import printable
from danqing.engine.core.vlm_defaults import AUTO, CONCURRENCY
from danqing.engine.stages.vlm.endpoint import BrokenError, Endpoint, Response, UnreachableError

T = TypeVar("T")

POLL_SECONDS = 0.2
"""Interval at which `Client.ask`, while it waits for a reply, checks whether it must stop."""
MAX_FAILURES = 3
MAX_GIVEN_UP = 50
"""Consecutive rows given up, without a success between them, after which the endpoint is considered faulty."""
REFUSED = {401: "the key is missing or wrong", 403: "the key may not use the model", 404: "no such model or path"}
"""Statuses that do not depend on the picture: they end the client."""
RETRIED = frozenset({408, 409})
MAX_WORDS = 300
"""Characters of a server's message that are shown."""


@dataclass(frozen=True)
class Timing:
    """Seconds that the client waits.

    Attributes:
        silence: without a byte of an answer, after which the question is asked again.
        first: before the second try; twice as long before each further one, up to `longest`, times a random number
            between 0.5 and 1.
        dead: without any success, after which the endpoints are given up.
    """

    silence: float = 300.0
    first: float = 0.5
    longest: float = 30.0
    dead: float = 300.0


@dataclass(frozen=True)
class Server:
    """How a vision-language model is asked.

    Attributes:
        addresses: of the endpoints; each request goes to the one with the fewest outstanding.
        model: its id, or `auto`: the only one that the endpoints list.
        concurrency: requests at once.
        timing: how long the client waits.
        answers: folder for what was answered before an interruption; None: nothing is stored.
    """

    addresses: tuple[str, ...]
    model: str = AUTO
    concurrency: int = CONCURRENCY
    timing: Timing = Timing()
    answers: Path | None = None

    def open(self) -> Client:
        """Opens a `Client`, which raises if an endpoint cannot be used."""
        return Client(self)


class Reply(NamedTuple):
    """What came of one question.

    Attributes:
        content: the answer's JSON; None if the row was given up.
        error: why it was.
        seconds: from the first request to the answer, waits included.
    """

    content: dict[str, Any] | None
    error: str
    seconds: float


class StoppedError(Exception):
    """The client ends, because the caller stops or another row found the endpoints dead."""


@dataclass
class _Row:
    """A question while it is asked.

    Attributes:
        started: `time.monotonic` of the first try.
        failures: answers that count against the row.
        tries: for the length of the next wait.
        problem: the last one.
    """

    started: float = field(default_factory=time.monotonic)
    failures: int = 0
    tries: int = 0
    problem: str = ""


class Client:
    """Asks endpoints that serve the same model.

    Args:
        server: the endpoints, and how they are asked.

    Attributes:
        model: the model's id.
        waiting: questions that are asked or wait for a thread; other threads may read it.
        retries: requests that were sent again; likewise.

    Raises:
        DanqingError: an endpoint cannot be reached, or does not serve the model.
    """

    def __init__(self, server: Server) -> None:
        self.timing = server.timing
        self.endpoints = [Endpoint(address, self.timing.silence) for address in server.addresses]
        self.concurrency, self.waiting, self.retries = server.concurrency, 0, 0
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._succeeded, self._given_up = time.monotonic(), 0
        self.model = self._choose(server.model)

    def _choose(self, model: str) -> str:
        for endpoint in self.endpoints:
            names = self._models(endpoint, model)
            listed = ", ".join(map(printable, names))
            if model == AUTO:
                if len(names) != 1:
                    raise DanqingError(f"{endpoint.address}: --model (--vlm-model) names one of its models: {listed}")
                model = names[0]
            elif names and model not in names:
                raise DanqingError(f"{endpoint.address}: serves {listed}, not {printable(model)} (--vlm-model)")
        return model

    def _models(self, endpoint: Endpoint, model: str) -> list[str]:
        """The ids of the models of an endpoint; empty if it does not list them and `model` names one."""
        try:
            response = endpoint.request("GET", "models")
        except (UnreachableError, BrokenError) as problem:
            raise DanqingError(f"{endpoint.address}: cannot be reached ({problem}); is the server running?") from None
        if response.status in (401, 403):
            raise DanqingError(f"{_described(endpoint, response)}: {REFUSED[response.status]}")
        if response.status >= 500:
            raise DanqingError(f"{_described(endpoint, response)}; the server may still be loading its model")
        if 300 <= response.status < 400:
            raise DanqingError(
                f"{endpoint.address}: HTTP {response.status}: it redirects to another address; name that one"
            )
        try:
            names = [str(model["id"]) for model in endpoint.content(response.body)["data"]]
        except (ValueError, KeyError, TypeError):
            names = []
        if not names and model == AUTO:
            raise DanqingError(
                f"{_described(endpoint, response)}: no list of models; is it the address of the API, as "
                "http://HOST:PORT/v1? If the server lists none, --model (--vlm-model) names one"
            )
        return names

    def ask(
        self, questions: Iterable[T], body: Callable[[T], bytes], stopped: threading.Event | None = None
    ) -> Iterator[tuple[T, Reply]]:
        """Asks questions, and yields each with its reply, in the order in which the replies arrive.

        Twice as many questions as `concurrency` are taken ahead of the replies.

        Args:
            questions: what the threads make requests of.
            body: makes the JSON of a request, in one of the threads; a `ValueError` gives the row up.
            stopped: ends the iteration when it is set; None: only the caller does.

        Raises:
            DanqingError: the endpoints are dead, or refuse every question.
        """
        self._stopped = ended = threading.Event()
        todo: SimpleQueue[T | None] = SimpleQueue()
        done: SimpleQueue[tuple[T, Reply] | BaseException] = SimpleQueue()
        threads: list[threading.Thread] = []

        def work() -> None:
            while (question := todo.get()) is not None and not ended.is_set():
                try:
                    done.put((question, self._reply(question, body)))
                except BaseException as problem:
                    done.put(problem)
                    return

        def finished() -> tuple[T, Reply]:
            while True:
                with suppress(Empty):
                    found = done.get(timeout=POLL_SECONDS)
                    break
                if stopped is not None and stopped.is_set():
                    raise StoppedError
            if isinstance(found, BaseException):
                raise found
            self.waiting -= 1
            return found

        try:
            for question in questions:
                todo.put(question)
                self.waiting += 1
                if len(threads) < self.concurrency:
                    threads.append(threading.Thread(target=work, daemon=True))
                    threads[-1].start()
                while self.waiting >= 2 * self.concurrency or not done.empty():
                    yield finished()
            while self.waiting:
                yield finished()
        finally:
            ended.set()
            for _ in threads:
                todo.put(None)
            if self.waiting:  # an error, or the caller stopped
                self.waiting = 0
                for endpoint in self.endpoints:
                    endpoint.close()

    def _reply(self, question: T, body: Callable[[T], bytes]) -> Reply:
        row = _Row()
        try:
            request = body(question)
        except ValueError as problem:
            return self._give_up(row, str(problem), counts=False)
        while True:
            waited = time.monotonic() - row.started
            if row.problem and waited > self.timing.dead:
                if self._succeeded < row.started:
                    raise DanqingError(
                        f"no endpoint has answered for {waited:.0f} s: {row.problem}. What is finished is kept; the "
                        "same command goes on from there"
                    )
                return self._give_up(row, row.problem)
            endpoint = self._take()
            try:
                response = endpoint.request("POST", "chat/completions", request)
            except UnreachableError as problem:
                row.problem = f"{endpoint.address}: {problem}"
                self._rest(endpoint, 0.0)
                continue
            except BrokenError as problem:
                row.problem, response = f"{endpoint.address}: {problem}", None
            finally:
                with self._lock:
                    endpoint.outstanding -= 1
            if (reply := self._read(row, endpoint, response)) is not None:
                return reply

    def _read(self, row: _Row, endpoint: Endpoint, response: Response | None) -> Reply | None:
        """The reply that a response is; None: the question must be asked again, and the waits are over."""
        wait = 0.0
        if response is not None:
            row.problem = _described(endpoint, response)
            wait = min(response.retry_after, self.timing.dead)
            if response.status == 200:
                try:
                    content = endpoint.content(response.body)
                except ValueError:
                    row.problem = f"{endpoint.address}: the answer is no JSON: {_shown(endpoint, response)}"
                else:
                    if isinstance(content, dict) and content.get("choices"):
                        return self._succeed(row, endpoint, content)
                    row.problem = f"{endpoint.address}: no answer in the JSON: {_shown(endpoint, response)}"
            elif response.status == 429:
                self._rest(endpoint, wait)
                return None
            elif response.status in REFUSED:
                raise DanqingError(f"{row.problem}: {REFUSED[response.status]}")
            elif response.status < 500 and response.status not in RETRIED:
                return self._give_up(row, row.problem)
        row.failures += 1
        if row.failures >= MAX_FAILURES:
            if self._is_alive(endpoint):
                return self._give_up(row, row.problem)
            row.failures = 0
            self._rest(endpoint, wait)
            return None
        with self._lock:
            self.retries += 1
        self._sleep(max(wait, self._pause(row.tries)))
        row.tries += 1
        return None

    def _succeed(self, row: _Row, endpoint: Endpoint, content: dict[str, Any]) -> Reply:
        now = time.monotonic()
        with self._lock:
            self._succeeded, self._given_up, endpoint.refusals = now, 0, 0
        return Reply(content, "", now - row.started)

    def _give_up(self, row: _Row, problem: str, counts: bool = True) -> Reply:
        with self._lock:
            self._given_up += counts
            if self._given_up >= MAX_GIVEN_UP:
                raise DanqingError(
                    f"{self._given_up} pictures one after the other were given up, the last one since {problem}. What "
                    "is finished is kept; correct the cause, and run the same command again"
                )
        return Reply(None, problem, time.monotonic() - row.started)

    def _is_alive(self, endpoint: Endpoint) -> bool:
        try:
            return endpoint.request("GET", "models").status < 500
        except (UnreachableError, BrokenError):
            return False

    def _take(self) -> Endpoint:
        """Waits for an endpoint that does not rest; of several takes the one with the fewest outstanding requests."""
        while True:
            with self._lock:
                now = time.monotonic()
                ready = [endpoint for endpoint in self.endpoints if endpoint.rests_until <= now]
                if ready:
                    endpoint = min(ready, key=lambda endpoint: endpoint.outstanding)
                    endpoint.outstanding += 1
                    return endpoint
                rest = min(endpoint.rests_until for endpoint in self.endpoints) - now
            self._sleep(rest * (1 + random.random() / 4))  # spreads the threads

    def _rest(self, endpoint: Endpoint, seconds: float) -> None:
        """Lets an endpoint rest: as long as it has asked, or longer after each refusal in a row."""
        now = time.monotonic()
        with self._lock:
            self.retries += 1
            if endpoint.rests_until > now:  # another thread saw the same failure
                endpoint.rests_until = max(endpoint.rests_until, now + seconds)
                return
            endpoint.rests_until = now + (seconds or self._pause(endpoint.refusals))
            endpoint.refusals += 1

    def _pause(self, tries: int) -> float:
        return min(self.timing.first * 2.0 ** min(tries, 20), self.timing.longest) * random.uniform(0.5, 1)

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise StoppedError


def _described(endpoint: Endpoint, response: Response) -> str:
    return f"{endpoint.address}: HTTP {response.status}: {_shown(endpoint, response)}"


def _shown(endpoint: Endpoint, response: Response) -> str:
    """The message in an answer, in one line and without the key."""
    text = response.body.decode("utf-8", "replace")
    try:
        content = endpoint.content(response.body)
        found = content.get("error", content.get("detail", content)) if isinstance(content, dict) else content
        text = found["message"] if isinstance(found, dict) and isinstance(found.get("message"), str) else str(found)
    except (ValueError, RecursionError):
        pass
    text = printable(" ".join(endpoint.hidden(text).split()))
    return text if len(text) <= MAX_WORDS else f"{text[: MAX_WORDS - 1]}…"
