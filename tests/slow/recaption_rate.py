"""Rate of the client alone: 20 kB pictures, a fault server in another process that answers at once.

python -m tests.slow.recaption_rate [SECONDS] [CONCURRENCY]
"""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import count, islice

import numpy as np

from danqing.engine.stages.vlm.chat import Question, read_answer
from danqing.engine.stages.vlm.client import Client, Server
from tests.conftest import started

PICTURE = b"\xff\xd8\xff" + np.random.default_rng(0).bytes(20_000)


def main() -> None:
    seconds, concurrency = (float(word) for word in (*sys.argv[1:], 5, 128)[:2])
    command = [sys.executable, "-m", "tests.fault_server", "0"]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        client = Client(Server((server.stdout.readline().strip(),), concurrency=int(concurrency)))
        make = Question("描述", client.model).body()
        replies = client.ask(count(), lambda row: make(PICTURE))
        assert {read_answer(reply).outcome for _, reply in islice(replies, 500)} == {"success"}
        begun, used, answered = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begun < seconds:
            answered += read_answer(next(replies)[1]).outcome == "success"
        wall, used = time.perf_counter() - begun, time.process_time() - used
        replies.close()  # type: ignore[attr-defined]
    print(
        f"{answered / wall:,.0f} requests/s, {used / answered * 1e6:,.0f} µs of CPU a request, {used / wall:.2f} cores"
    )


if __name__ == "__main__":
    main()
