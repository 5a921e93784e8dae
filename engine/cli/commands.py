"""All commands together, and how one is run."""

from __future__ import annotations

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


def run(arguments: Sequence[str]) -> int:
    """Runs the command of a command line; returns its exit status.

    Raises:
        DanqingError: a command or an option that does not exist, a value that is wrong or missing, or bad input.
    """
    try:
        return app(list(arguments)) or 0
    except CycloptsError as problem:
        command = " ".join(["danqing", *(problem.command_chain or ())])
        raise DanqingError(f"{' '.join(str(problem).split())} See {command} --help") from None
