"""Output of commands: progress and tables for people, or one JSON object for scripts."""

from __future__ import annotations

import json as json_format
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from danqing import __version__
from danqing.engine.cli.options import OUTPUT
from danqing.engine.core.escape import escaped, escaped_json

if TYPE_CHECKING:
    from danqing.engine.core.spans import Spans

Json = Annotated[
    bool, Parameter(name="--json", group=OUTPUT, help="Print one JSON object to stdout instead of tables.")
]


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True)
class QuietOptions:
    """Options of commands that print tables."""

    quiet: Annotated[bool, Parameter(help="Print nothing but errors.")] = False
    log_format: Annotated[
        Literal["text", "json"], Parameter(help="json: log JSON lines to stderr, one per shard, instead of progress.")
    ] = "text"

    @contextmanager
    def progress(self, note: str = "") -> Iterator[None]:
        """Opens the context in which a phase runs; `note` is said before its first progress."""
        from danqing.engine.report.terminal import display

        with self._log(), display(self.quiet or self.log_format == "json", note):
            yield

    def _log(self) -> AbstractContextManager[None]:
        from danqing.engine.core.logs import json_lines_on_stderr

        return json_lines_on_stderr(__version__) if self.log_format == "json" else nullcontext()


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True)
class OutputOptions(QuietOptions):
    """Options of commands that print tables or JSON."""

    json: Json = False

    def finish(self, result: Mapping[str, Any], notes: Sequence[str] = ()) -> bool:
        """Prints the result and the notes on it if JSON is wanted; returns whether nothing else is to be printed."""
        if self.json:
            print_json({**result, "notes": notes})
            self.print_notes(notes)
        return self.json or self.quiet

    def print_notes(self, notes: Sequence[str]) -> None:
        """Prints notes on the result (`engine.report.notes`) to stderr, one a line."""
        from danqing.engine.core.logs import log

        with self._log():
            for note in () if self.quiet else notes:
                if self.log_format == "json":
                    log.warning("%s", note)
                else:
                    print(escaped(note), file=sys.stderr)


def print_json(result: Mapping[str, Any]) -> None:
    """Prints one JSON object. Paths become text; numbers that JSON has no notation for become null."""
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print(escaped_json(json_format.dumps(_plain(result), ensure_ascii=ascii_only, indent=2)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def stages_of(spans: Spans) -> dict[str, dict[str, Any]]:
    """Returns what `print_spans` shows, as JSON."""
    return {
        name: {
            "pairs": span.rows,
            "passed": span.passed,
            "errors": span.failed,
            "dropped": span.dropped,
            "seconds": round(span.seconds, 3),
            "starved_seconds": round(span.starved_seconds, 3),
            "blocked_seconds": round(span.blocked_seconds, 3),
        }
        for name, span in spans.items()
    }
