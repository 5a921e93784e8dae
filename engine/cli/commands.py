"""All commands together, and how one is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cyclopts import CycloptsError, UnknownOptionError

from danqing.engine.cli import evaluate, inspect, phases, train  # noqa: F401
from danqing.engine.cli.app import GENERAL, app, command
from danqing.engine.core.errors import DanqingError

SOME_COMMANDS = 3
"""Number of commands up to which the message about an unknown option names those that have it."""


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
        text = " ".join(str(problem).split())
        if isinstance(problem, UnknownOptionError):
            text += _other_commands((problem.token.keyword or problem.token.value or "").partition("=")[0])
        raise DanqingError(f"{text} See {command} --help") from None


def _other_commands(option: str) -> str:
    """A sentence that names the few commands with an option; empty if there are none or many."""
    having = [
        name
        for name in app
        if name not in (*app.help_flags, *app.version_flags)
        and app[name].default_command
        and any(option in argument.names for argument in app[name].assemble_argument_collection())
    ]
    return f" It is an option of {', '.join(having)}." if 0 < len(having) <= SOME_COMMANDS else ""
