"""Which rows of a table can be used: those with the URL of a picture on the web, and a caption."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danqing.engine.core.strings import TextColumn
from danqing.engine.recipe.criteria import Interval, Threshold

USABLE = Threshold("usable", "usable", Interval(minimum=1), section="input", step="a URL and a caption")
"""Added before the recipe's criteria: 1 if the row could be read and has a URL and a caption."""
WEB_URL = re.compile(r"https?:[/\\]+[^/\\?#\s]", re.IGNORECASE)
"""The start of a URL that can be downloaded. Browsers read a backslash as a slash."""
PLAIN_URL = r"^(?i:https?)://[^\x00- #/?\\\x7f-\x{10ffff}]"
"""The start of nearly all URLs that can be downloaded, in the syntax of RE2: `WEB_URL` with an ASCII host."""


def unusable_rows(urls: TextColumn, captions: TextColumn, errors: Mapping[int, str]) -> dict[int, str]:
    """Finds the rows that cannot be used.

    Args:
        urls, captions: null where a cell is missing.
        errors: row → what is wrong with it, for the rows that could not be read.

    Returns:
        Row → what is wrong with it, in order.
    """
    url, caption = urls.arrow(), captions.arrow()
    plain = pc.fill_null(pc.match_substring_regex(url, PLAIN_URL), False).to_numpy(zero_copy_only=False)
    plain &= caption.is_valid().to_numpy(zero_copy_only=False)
    plain[list(errors)] = False
    found: dict[int, str] = {}
    rows = np.flatnonzero(~plain)
    texts = zip(url.take(pa.array(rows)).to_pylist(), caption.take(pa.array(rows)).is_valid().to_pylist(), strict=True)
    for row, (text, has_caption) in zip(rows.tolist(), texts, strict=True):
        if problem := errors.get(row) or _problem(text, has_caption):
            found[row] = problem
    return found


def _problem(url: str | None, has_caption: bool) -> str | None:
    """Returns why a row is not usable, or None."""
    if not (url and url.strip()):
        return "no URL"
    if not WEB_URL.match(url.strip()):
        return f"not a URL of the web: {url.strip()[:80]}"
    return None if has_caption else "no caption"
