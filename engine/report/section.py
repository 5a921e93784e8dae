"""A section of the report's page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from danqing.engine.report.figures import Figure


@dataclass(frozen=True)
class Section:
    """A section of the page; `engine.report.html.SECTIONS` lists the functions that make them.

    Attributes:
        anchor: of its heading, for links.
        title: its heading.
        lead: the text below the heading.
        figures: shown on the page, in report.json and by `--figures`.
        template: file of `templates/` that shows it; sees the section as `section`, and `runs` and `names`.
        content: data of a special template, shown with the figures.
    """

    anchor: str
    title: str
    lead: str = ""
    figures: Sequence[Figure] = ()
    template: str = "figures.html"
    content: Any = None
