"""Balance of the pictures: clusters of the features, before and after."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from danqing.engine.report import balance
from danqing.engine.report.balance import balance_section, effective_number
from danqing.engine.report.rows import Sample

SIZES, KEPT = (60, 30, 20, 10), 10
"""Pictures of four kinds, of which as many are kept of each."""


def view_of(folder: Path, model: str = "one", kinds: int = 4, sizes: tuple[int, ...] = SIZES) -> Any:
    """The part of a view that is read: two shards with the features of pictures of some kinds, in turn."""
    folder.mkdir()
    random = np.random.default_rng(3)
    kind = np.repeat(np.arange(len(sizes)), sizes)
    vectors = (np.eye(8)[kind % kinds] + random.normal(size=(len(kind), 8)) * 0.02).astype(np.float16)
    place = np.concatenate([np.arange(number) for number in sizes])
    shard = random.integers(0, 2, len(kind))
    tables = []
    for number in range(2):
        mine = shard == number
        np.save(folder / f"{number}.npy", vectors[mine])
        rows = pa.array([-1, None, *range(mine.sum())], pa.int32())  # two rows without features come first
        shards = pa.array(np.full(len(rows), number, np.int32))
        kept = pa.array([False, False, *(place[mine] < KEPT).tolist()])
        tables.append(pa.table({"feature_row": rows, "shard_number": shards, "kept": kept}))
    table = pa.concat_tables(tables)
    sample = Sample(len(table), table.drop_columns("kept"), table["kept"].to_numpy(zero_copy_only=False))
    run = SimpleNamespace(
        manifest={"models": {"image_embedding": model}}, features_path=lambda number: folder / f"{number}.npy"
    )
    return SimpleNamespace(run=run, sample=sample)


def test_sizes_of_clusters_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(tmp_path / "a")
    section = balance_section([view])
    assert section
    (numbers,) = section.figures[0].numbers
    assert numbers["clusters"] == 4 and numbers["all"]["sizes"] == sorted(SIZES, reverse=True)
    assert numbers["kept"] == {"pairs": 40, "effective": 4.0, "sizes": [10] * 4}
    shares = np.array(SIZES) / sum(SIZES)
    assert math.isclose(numbers["all"]["effective"], math.exp(-(shares * np.log(shares)).sum()), abs_tol=1e-6)
    again = balance_section([view])
    assert again and again.figures[0].drawings == section.figures[0].drawings
    assert (
        "effective number: 3.3 of all 120 pairs with features, 4.0 of the 40 kept ones" in section.figures[0].notes[0]
    )

    monkeypatch.setattr(balance, "MAX_ROWS", 90)
    fewer = balance_section([view_of(tmp_path / "fewer", sizes=(60, 60, 60, 60))])
    assert fewer is None  # 15 of the 90 are kept
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "faiss", None)
    without = balance_section([view])
    assert without and not without.figures and "pip install 'danqing-engine[faiss]'" in without.lead


def test_runs_of_one_model_share_their_clusters(tmp_path: Path) -> None:
    whole, half = view_of(tmp_path / "whole"), view_of(tmp_path / "half", kinds=2)
    section = balance_section([whole, half])
    assert section
    assert [numbers["all"]["sizes"] for numbers in section.figures[0].numbers] == [[60, 30, 20, 10], [80, 40, 0, 0]]
    other = balance_section([whole, view_of(tmp_path / "other", "another", kinds=2)])
    assert other and 0 not in other.figures[0].numbers[1]["all"]["sizes"]  # it has four clusters of its own
    assert len(section.figures[0].drawings) == 2


def test_few_kept_pairs_have_no_balance(tmp_path: Path) -> None:
    assert balance_section([view_of(tmp_path / "few", sizes=(9, 9, 9, 9))]) is None


def test_the_effective_number_counts_equal_clusters() -> None:
    assert effective_number(np.array([7, 7, 7, 7])) == pytest.approx(4)
    assert effective_number(np.array([100, 0, 0])) == 1
