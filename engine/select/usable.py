"""Usable rows of a table: those with a caption and the URL of a picture on the web."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from danqing.engine.core.device import Device
from danqing.engine.core.text_column import TextColumn
from danqing.engine.recipe.criteria import Threshold
from danqing.engine.recipe.interval import Interval
from danqing.kernels.text.urls import plain_web_urls

USABLE = Threshold("usable", "usable", Interval(minimum=1), section="input", step="a URL and a caption")
"""Added before the recipe's criteria: 1 if the row could be read and has a URL and a caption."""
WEB_URL = re.compile(r"https?:[/\\]+(?>(?:[^/\\?#]*@)?)[^/\\?#\s:]", re.IGNORECASE)
"""The start of a URL that can be downloaded: a host follows the last `@` of the authority. Browsers read a backslash as
a slash."""


def unusable_rows(
    device: Device, urls: TextColumn, has_caption: np.ndarray, errors: Mapping[int, str]
) -> dict[int, str]:
    """Finds the rows that cannot be used.

    Args:
        device: looks at the URLs; the host looks only at those that `plain_web_urls` leaves.
        urls: empty or null where a row has none.
        has_caption: bool (rows,).
        errors: row → what is wrong with it, for the rows that could not be read.

    Returns:
        Row → what is wrong with it, in order.
    """
    usable = device.down(plain_web_urls(device, urls.strings(device))) & has_caption
    usable[list(errors)] = False
    found: dict[int, str] = {}
    rows = np.flatnonzero(~usable)
    texts = zip(urls.take(rows).to_pylist(), has_caption[rows].tolist(), strict=True)
    for row, (url, captioned) in zip(rows.tolist(), texts, strict=True):
        if problem := errors.get(row) or _problem(url, captioned):
            found[row] = problem
    return found


def _problem(url: str | None, has_caption: bool) -> str | None:
    """Returns why a row is not usable, or None."""
    if not (url and url.strip()):
        return "no URL"
    if not WEB_URL.match(url.strip()):
        return f"not a URL of the web: {url.strip()[:80]}"
    return None if has_caption else "no caption"
