"""The `danqing` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Literal

from cyclopts import CycloptsError

from danqing.engine.cli import inspect, phases  # noqa: F401
from danqing.engine.cli.app import GENERAL, app, command
from danqing.engine.core.errors import DanqingError


@command("danqing --install-completion", group=GENERAL, name="--install-completion")
def install_completion(*, shell: Literal["bash", "zsh", "fish"] | None = None) -> None:
    """Install the completion of commands and options for your shell."""
    print(f"{app.install_completion(shell=shell)}: start a new shell to use it")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0 done, 1 `diff` found a difference or `models verify` found that parity fails, 2 bad input,
        130 interrupted.
    """
    try:
        status = app(sys.argv[1:] if arguments is None else list(arguments)) or 0
        sys.stdout.flush()
        return status
    except CycloptsError as problem:
        command = " ".join(["danqing", *(problem.command_chain or ())])
        print(f"danqing: {' '.join(str(problem).split())} See {command} --help", file=sys.stderr)
        return 2
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
