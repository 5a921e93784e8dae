"""The `danqing` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from danqing.engine.core.errors import DanqingError

HELP = Path(__file__).with_name("help.txt")
"""What `danqing --help` prints, made by `danqing.engine.cli.reference`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0 done, 1 `diff` found a difference or `models verify` found that parity fails, 2 bad input,
        3 `--strict` and damaged input, 130 interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if words in ([], ["-h"], ["--help"]):  # at once: the command line's libraries take 0.2 s to import
            print(HELP.read_text(encoding="utf-8"), end="")
            status = 0
        else:
            from danqing.engine.cli.commands import run

            status = run(words)
        sys.stdout.flush()
        return status
    except DanqingError as problem:
        print(f"danqing: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ndanqing: interrupted; finished shards are kept, the same command goes on from there", file=sys.stderr)
        return 130
    except (BrokenPipeError, SystemExit):  # `danqing … | head`; rich answers a closed pipe with SystemExit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as problem:
        if problem.filename is None:
            raise
        print(f"danqing: {problem.filename}: {problem.strerror}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
