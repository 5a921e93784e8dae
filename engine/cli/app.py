"""The command line's application object; the modules of commands register themselves with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from cyclopts import App, Group, Parameter

from danqing import __version__

Function = TypeVar("Function", bound=Callable[..., Any])

ABOUT = """\
Turns crawled Chinese image-text pairs into a training set: the DanQing recipe,
score → decide → write.
"""
EXAMPLES = (
    "danqing demo                             a small crawl with planted defects",
    "danqing curate 'shards/{00000..00041}.tar' -o out",
    "danqing decide out --set words.max=40    other thresholds, in seconds",
    "danqing explain out 000001234            why was this pair dropped?",
    "danqing curate --help                    options and examples of a command",
)

MODELS_HELP = "Export, compile, verify and activate models."
CALIBRATE_HELP = "Measure thresholds for a model on a run's own pictures."

PHASES = Group("Phases", sort_key=1)
RUNS = Group("Runs", sort_key=2)
MODELS = Group("Models", sort_key=3)
GENERAL = Group("General", sort_key=4)


def shown_default(value: Any) -> str | None:
    """Returns the default for an option's help; None (not shown) for flags and for options without a value."""
    return None if value in (None, False, (), "") else str(value)


def examples_text(lines: Iterable[str]) -> str:
    """Returns the end of a command's help."""
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


PARAMETERS = Parameter(negative=(), show_default=shown_default, allow_repeating=True)

app = App(
    "danqing",
    help=ABOUT,
    help_epilogue=examples_text(EXAMPLES),
    help_format="plaintext",  # Markdown would join the lines of examples, and its parser takes 70 ms to import
    version=f"danqing {__version__}",
    default_parameter=PARAMETERS,
    group_commands=GENERAL,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    exit_on_error=False,
    print_error=False,
)
app.command("danqing.engine.cli.models:models", name="models", help=MODELS_HELP, group=MODELS)  # imported when used
app.command("danqing.engine.cli.calibrate:calibrate", name="calibrate", help=CALIBRATE_HELP, group=RUNS)


def command(*examples: str, group: Group, parent: App = app, name: str | None = None) -> Callable[[Function], Function]:
    """Registers a function as a command.

    Args:
        examples: command lines shown below its help.
        group: heading under which the command is listed.
        parent: application whose command it is.
        name: name of the command (default: the function's).
    """
    epilogue, position = examples_text(examples), len(list(parent))
    return parent.command(name=name, group=group, help_epilogue=epilogue, sort_key=position)
