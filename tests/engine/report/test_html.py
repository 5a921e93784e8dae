"""report.html of small runs."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from danqing.engine.core.escape import UNSAFE
from danqing.engine.phases import curate
from danqing.engine.recipe.reading import Recipe
from danqing.engine.report import html
from danqing.engine.report.html import write_page, write_report
from danqing.engine.run.settings import Settings
from tests.engine.score.test_run import crawl

__all__ = ["crawl"]


def test_the_rows_shown_are_those_with_the_smallest_uids(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, _ = curate(crawl, tmp_path / "out", plain_recipe, Settings())
    page = (tmp_path / "out" / "report.html").read_bytes()
    write_report(run)
    assert (tmp_path / "out" / "report.html").read_bytes() == page and b"<i>no picture</i>" in page
    verdicts = [row for shard in run.shards for row in pq.read_table(run.verdicts_path(shard.number)).to_pylist()]
    monkeypatch.setattr(html, "KEPT_SHOWN", 7)
    monkeypatch.setattr(html, "DROPPED_SHOWN", 1)
    expected: dict[str, list[int]] = {}
    for position in sorted(range(len(verdicts)), key=lambda row: verdicts[row]["uid"]):
        reason = verdicts[position]["dropped_by"]
        rows = expected.setdefault(f"dropped by {reason}" if reason else "kept", [])
        rows += [position] if len(rows) < (1 if reason else 7) else []
    shown = html._sample(run)
    assert shown == expected and len(shown) > 3 and next(iter(shown)) == "kept"


def test_a_page_escapes_its_title_and_control_characters(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "<b>", ["<p>\x1b\u202e</p>", "一只猫"])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<title>&lt;b&gt;</title>" in page and "<p>\\x1b\\u202e</p>\n一只猫" in page and not UNSAFE.search(page)
