"""The documentation: its links lead to files, and the messages that it quotes are those of the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("danqing", "engine", "kernels", "profiling", "trt_models")
PAGES = [*ROOT.glob("*.md"), *(path for folder in ("docs", *FOLDERS[1:]) for path in (ROOT / folder).rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
MODULE = re.compile(r"python -m (danqing(?:\.\w+)+)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
VARIABLE = re.compile(r"…|'[^' ]*'|\b[A-Z]+\b|\d+[A-Z]*|[{}:;,`().]")
"""Parts of a quoted message that are not fixed words: values, placeholders, and marks that may stand beside them."""
QUOTING_PAGES = {"troubleshooting.md": ("message", "`error`"), "profiling.md": ("sentence",)}
"""Pages with tables of messages, each with the headings of the columns that quote."""


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in link:
            target, _, anchor = link.partition("#")
            path = page.parent / target if target else page
            assert path.exists(), link
            assert not anchor or anchor in anchors(path), link


def test_modules_that_commands_run_exist() -> None:
    names = {name for page in PAGES for name in MODULE.findall(page.read_text(encoding="utf-8"))}
    assert len(names) > 4
    for name in names:
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


@cache
def texts() -> tuple[str, ...]:
    """The strings of the sources; `…` stands for each value of an f-string."""
    found = [(ROOT / "run").read_text(encoding="utf-8")]
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
    return tuple(found)


def quoted() -> Iterator[tuple[str, str]]:
    """Page and text of every quoted message."""
    for name, headings in QUOTING_PAGES.items():
        quoting = False
        for line in (ROOT / "docs" / name).read_text(encoding="utf-8").splitlines():
            first = line.split("|")[1].strip() if line.startswith("|") else ""
            quoting = first in headings or (quoting and line.startswith("|"))
            if quoting:
                yield from ((name, span) for span in re.findall(r"`([^`]+)`", first) if " " in span)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        yield from ((page.name, " ".join(span.split())) for span in re.findall(r"^danqing: ([^`]*?)^```", text, re.M))


def test_quoted_messages_are_those_of_the_sources() -> None:
    messages = list(quoted())
    assert len(messages) > 60
    for page, message in messages:
        fragments = [part.strip(" '\"") for part in VARIABLE.split(message)]
        assert any(all(fragment in text for fragment in fragments) for text in texts()), f"{page}: {message}"
