"""The `danqing` command."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.escape import escaped
from danqing.engine.core.files import FULL, file_error

if TYPE_CHECKING:
    from types import FrameType

HELP = Path(__file__).with_name("help.txt")
"""Text of `danqing --help`, made by `danqing.engine.cli.reference`."""
SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""Signals of schedulers and of a closed terminal; handled like Ctrl-C. As process 1 without a handler, a process would
never receive them."""
RESUMABLE = {"curate": "shards", "demo": "shards", "score": "shards", "select": "parts", "train": "checkpoints"}
"""Commands that go on where they were stopped, and what they finish one by one."""


class StoppedError(KeyboardInterrupt):
    """The process received one of `SIGNALS`.

    Attributes:
        signal: which one.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0 done; 1 `diff` found a difference, parity failed in `models verify`, or a metric of
        `evaluate` fell by more than `--max-drop`; 2 bad input, or an output that cannot be written or does not read
        back as written; 3 `--strict` and damaged input; 128 + N for a signal: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP. 141
        (SIGPIPE) if the reader of stdout has closed it, as coreutils and git do: 0 would say, for example, that `diff`
        found nothing.
    """
    _prepare_streams()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _signals_raise():
            status = _run(words)
            sys.stdout.flush()
        return status
    except DanqingError as problem:
        _say(str(problem))
        return 2
    except KeyboardInterrupt as stopped:
        return _stop(stopped, words)
    except (BrokenPipeError, SystemExit):  # `danqing … | head`; rich answers a closed pipe with SystemExit
        _discard_stdout()
        return 128 + signal.SIGPIPE
    except OSError as problem:
        _discard_stdout()
        if problem.filename is None and problem.errno not in FULL:
            raise
        _say(file_error(problem) if problem.filename else f"standard output: {problem.strerror}")
        return 2


def _run(words: list[str]) -> int:
    if words in ([], ["-h"], ["--help"]):  # at once: the command line's libraries take 0.2 s to import
        encoding = sys.stdout.encoding or "utf-8"
        print(HELP.read_text(encoding="utf-8").encode(encoding, "replace").decode(encoding), end="")
        return 0
    from danqing.engine.cli.commands import run

    return run(words)


def _prepare_streams() -> None:
    """Opens descriptors that the caller has closed (`>&-`), and lets every text be printed.

    Files that are opened later must not get the number of a standard stream. Characters that the encoding lacks, and
    bytes of file names that are not text, are printed as `\\xhh` or `\\uhhhh`.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Makes `SIGNALS` raise `StoppedError` in the main thread, once; a signal that the caller ignores stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for handled in before:
            signal.signal(handled, signal.SIG_IGN)  # a second one would break the shutdown
        raise StoppedError(number)

    before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(stopped: KeyboardInterrupt, words: list[str]) -> int:
    """Says what is finished and how to go on; returns the exit status."""
    number = stopped.signal if isinstance(stopped, StoppedError) else signal.SIGINT
    finished = ""
    if stopped.args:  # the folder that the command was writing to
        from danqing.engine.run.folder import finished_work

        with suppress(OSError):
            finished = finished_work(stopped.args[0])
    reason = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    if not finished and words and words[0] in RESUMABLE:
        finished = f"finished {RESUMABLE[words[0]]} are kept"
    if number == signal.SIGINT and sys.stderr.isatty():
        print(file=sys.stderr)  # the terminal has printed ^C
    _say(f"{reason}; {finished}; the same command goes on from there" if finished else reason)
    return 128 + number


def _say(message: str) -> None:
    with suppress(OSError, ValueError):  # stderr is closed or full, too
        print(f"danqing: {escaped(message)}", file=sys.stderr, flush=True)


def _discard_stdout() -> None:
    """Discards what is left in stdout's buffer if it cannot be written, and what follows."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # a stream without a descriptor
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


if __name__ == "__main__":
    sys.exit(main())
