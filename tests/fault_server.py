"""A chat.completions server that plays faults, in the order of a script; without one it answers at once.

python -m tests.fault_server PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

CAPTION = '{"caption": "一只小猫在草地上晒太阳"}'
STATUS = {"busy": "429 Too Many\r\nRetry-After: 0.05", "broken": "500 Oops", "bad": "400 Bad", "key": "401 No"}


@dataclass
class Play:
    """What the server does: one of `STATUS`, stall, half, reset, words, deep, refused, length,
    filter, judged (7 where a number is asked for, else no), or a text to answer."""

    script: list[str] = field(default_factory=list)
    always: str = CAPTION
    models: str = '{"data": [{"id": "tiny"}]}'
    posts: list[bytes] = field(default_factory=list)
    stores: bool = True
    address: str = ""


class Connection(asyncio.Protocol):
    def __init__(self, play: Play) -> None:
        self.play, self.buffer = play, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        size = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0] or 0)
        if end and len(rest) >= size:
            self.buffer = rest[size:]
            self.answer(head, rest[:size])

    def answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET"):
            status = {"": "500 Down", "moved": "302 Found\r\nLocation: /login"}.get(self.play.models, "200 OK")
            self.send(status, self.play.models or "{}")
            return
        if self.play.stores:
            self.play.posts.append(head + b"\r\n\r\n" + body)
        act = self.play.script.pop(0) if self.play.script else self.play.always
        if act == "judged":
            act = "7" if b"NUMBER" in body else "no"
        if act in STATUS:
            self.send(STATUS[act], json.dumps({"error": {"message": f"played {act}: {head.decode()[-200:]}"}}))
        elif act == "half":
            self.transport.write(b'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"choices": [')
            self.transport.close()
        elif act == "reset":
            self.transport.abort()
        elif act.startswith("words"):
            self.send("200 OK", f"<html>no JSON{act[5:]}</html>")
        elif act == "deep":
            self.send("200 OK", "[" * 100_000)
        elif act == "refused":
            self.send("200 OK", json.dumps({"error": {"message": f"refused {head.decode()[-200:]}"}}))
        elif act != "stall":
            reason = {"length": "length", "filter": "content_filter"}.get(act, "stop")
            text = {"length": CAPTION[:20], "filter": ""}.get(act, act)
            choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
            self.send(
                "200 OK", json.dumps({"choices": [choice], "usage": {"prompt_tokens": 40, "completion_tokens": 9}})
            )

    def send(self, status: str, body: str) -> None:
        self.transport.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode())


@contextmanager
def serving(play: Play, port: int = 0) -> Iterator[Play]:
    """Serves in a thread during a `with` block; `play.address` is where."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(lambda: Connection(play), "127.0.0.1", port))
    play.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield play
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


if __name__ == "__main__":
    with serving(Play(stores=False), int(sys.argv[1])) as play:
        print(play.address, flush=True)
        sys.stdin.read()
