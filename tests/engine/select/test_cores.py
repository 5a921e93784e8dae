"""The stages of SELECT on several threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import danqing.engine.select.ledger
import danqing.engine.select.selection
from danqing.engine.core.batch import Batch
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from danqing.engine.select.selection import select
from danqing.engine.stages.text import Refine

GOOD = "公园的草地上有一只可爱的小猫在晒太阳"
CAPTIONS = [GOOD, "小猫", None, "公園的草地上有一隻可愛的小貓", "是的 我 和 你 他 的"] * 7


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A table of many parts, each of several batches."""
    monkeypatch.setattr(danqing.engine.select.selection, "PART_ROWS", 6)
    monkeypatch.setattr(danqing.engine.select.ledger, "BATCH_ROWS", 2)
    urls = [f"https://x.example/{row}.jpg" for row in range(len(CAPTIONS))]
    pq.write_table(pa.table({"url": urls, "caption": CAPTIONS}), tmp_path / "t.parquet")
    return str(tmp_path / "t.parquet")


def test_a_selection_is_the_same_on_any_number_of_threads(table: str, plain_recipe: Recipe, tmp_path: Path) -> None:
    trees, funnels = [], []
    for threads in (1, 2, 5):
        chosen = select([table], tmp_path / str(threads), plain_recipe, settings=Settings(threads=threads))
        trees.append({p.relative_to(chosen.folder): p.read_bytes() for p in chosen.folder.rglob("*") if p.is_file()})
        funnels.append(chosen.funnel)
        assert chosen.spans["read"].rows == len(CAPTIONS) == 35
        assert chosen.spans["caption"].rows == 28 and chosen.spans["refine"].rows == 21  # sums of the threads
    assert trees[0] == trees[1] == trees[2] and len(trees[0]) == 14
    assert 0 < funnels[0].kept < 28


def test_the_error_of_a_stage_ends_all_threads(
    table: str, plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def fail(self: Refine, batch: Batch) -> Any:
        calls.append(len(batch))
        raise RuntimeError("no memory")

    monkeypatch.setattr(Refine, "__call__", fail)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no memory"):
        select([table], tmp_path / "out", plain_recipe, settings=Settings(threads=3))
    assert len(calls) <= 3 and threading.active_count() == before  # each thread's first batch at most
