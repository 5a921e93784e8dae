"""Writes HTML pages that load no other files, from the templates beside this module."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from danqing.engine.core.escape import escaped, escaped_json
from danqing.engine.core.files import commit

TEMPLATES = Path(__file__).with_name("templates")


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # here, so that `import danqing` does not need it

    loader = FileSystemLoader(TEMPLATES)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def template_text(name: str) -> Markup:
    """The text of a file beside the templates, which is inlined as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def json_in_html(content: Any) -> Markup:
    """JSON for a `<script type="application/json">`: nothing in it ends the element."""
    text = json.dumps(content, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(escaped_json(text))


def write_page(path: Path, template: str, title: str, **content: Any) -> None:
    """Writes a page.

    Args:
        path: the file.
        template: name of the template.
        title: shown by the browser.
        content: variables of the template. Texts are escaped; drawings are `Markup`. Control characters become visible
            escapes.
    """
    style = template_text("figure.css") + template_text("style.css")
    page = _environment().get_template(template).render(title=title, style=style, **content)
    with commit(path, "w") as file:
        file.write(f"{escaped(page)}\n")
