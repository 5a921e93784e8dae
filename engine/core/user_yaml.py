"""YAML that users write: recipes and model cards. Files are small, trees are shallow and have no aliases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from danqing.engine.core.errors import DanqingError

MAX_BYTES = 1 << 16
"""Size of a file; PyYAML reads about 200 kB a second. The built-in recipes have 6 kB, the cards 2 kB."""
MAX_DEPTH = 8
"""Nested mappings and lists; a valid recipe has three."""


class LimitedLoader(yaml.SafeLoader):
    """Refuses deep trees, and aliases: a few lines of them can stand for billions of values."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        place: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported", problem_mark=place)
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=place)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_user_file(path: Path, what: str) -> str:
    """Reads a file as text.

    Args:
        path: the file.
        what: names it in messages, `recipe`.

    Raises:
        DanqingError: the file cannot be read, has more than `MAX_BYTES` or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DanqingError(f"{path}: a {what} has at most {MAX_BYTES:,} bytes; this is another file")
        return content.decode()
    except OSError as problem:
        raise DanqingError(f"{path}: cannot read the {what}: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise DanqingError(f"{path}: a {what} is UTF-8 text; byte {problem.start} is not") from None


def describe_yaml_error(where: str, problem: Exception) -> str:
    """Returns the message for text that cannot be parsed: file, line and reason."""
    mark = getattr(problem, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    reason = getattr(problem, "problem", None) or str(problem).partition("\n")[0]
    return f"{where}{line}: not valid YAML: {reason}"
