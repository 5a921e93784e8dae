"""FAISS as an index: rows with many copies, a recall below 1, and what is said where it is not installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.decide.dedup import faiss_index
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.groups import likely_components, near_components
from danqing.engine.decide.dedup.index import INDEXES, choose_index

WITHIN = 0.1


@pytest.fixture(scope="module")
def crowds() -> np.ndarray:
    """float16 (10,000, 64): noise, groups of up to 20 rows, one of 600 and one of 300 copies."""
    chance = np.random.default_rng(4)
    centres = chance.normal(size=(10_000, 64))
    centres[5_000:] = np.repeat(centres[:250], 20, axis=0)
    centres[7_000:7_600], centres[8_000:8_300] = centres[7_000], centres[8_000]
    centres[5_000:] += 0.2 * chance.random((5_000, 1)) * chance.normal(size=(5_000, 64))
    return centres.astype(np.float16)[chance.permutation(10_000)]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows are compared with all rows by tiles, in each search."""
    counts: list[int] = []
    join = faiss_index.join_rows

    def watched(features: Features, rows: Any, *arguments: Any) -> None:
        counts.append(len(rows))
        join(features, rows, *arguments)

    monkeypatch.setattr(faiss_index, "join_rows", watched)
    return counts


def test_rows_with_many_copies_are_asked_for_again(
    device: Device, crowds: np.ndarray, compared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = Features(device, [crowds])
    expected = near_components(features, WITHIN)
    assert sorted(np.unique(expected, return_counts=True)[1])[-2:] == [301, 601]
    assert (near_components(features, WITHIN, index="faiss") == expected).all() and compared == [0]
    monkeypatch.setattr(faiss_index, "NEAREST", (64,))
    compared.clear()
    assert (near_components(features, WITHIN, index="faiss") == expected).all()
    assert 900 <= compared[0] < 1_000
    known = near_components(features.take(slice(0, 9_000)), WITHIN)
    assert (near_components(features, WITHIN, earlier=known, index="faiss") == expected).all()
    assert 60 < compared[1] < 150  # only of the rows that are new


def test_inverted_lists_reach_the_recall(
    device: Device, crowds: np.ndarray, compared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, recall = Features(device, [crowds]), 0.99
    exact, (likely, measured) = (
        near_components(features, WITHIN), likely_components(features, WITHIN, recall, index="faiss")
    )  # fmt: skip
    assert measured is not None and measured.share >= recall and measured.pairs > 1_000 and not compared
    assert (exact[likely] == exact).all(), "a group must lie within a true one"
    monkeypatch.setattr(faiss_index, "PROBES", ())
    found, measured = likely_components(features, WITHIN, recall, index="faiss")
    assert (found == exact).all() and measured is not None and measured.share == 1 and len(compared) == 1
    few = Features(device, [crowds[:3_000]])
    assert likely_components(few, WITHIN, recall, index="faiss")[1] is None  # exact, as with all indexes
    assert len(near_components(features.take(slice(0, 0)), WITHIN, index="faiss")) == 0


def test_the_index_suits_the_device_and_the_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(name: str) -> list[str]:
        return [choose_index(name, kind, recall) for kind in ("cpu", "cuda") for recall in (1, 0.99)]

    assert chosen("tiles") == ["tiles"] * 4 and chosen("lists") == ["tiles", "lists"] * 2
    assert chosen("auto") == ["tiles", "lists"] * 2  # without a FAISS for GPUs
    for_gpus = SimpleNamespace(GpuIndexFlatIP=SimpleNamespace(search_ex=None), __version__="1.15.1")
    monkeypatch.setitem(sys.modules, "faiss", for_gpus)
    assert chosen("auto") == ["tiles", "lists", "tiles", "faiss"] and choose_index("faiss", "cuda") == "faiss"


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda modules: modules(None), "cpu", r"--neighbours faiss: .*pip install 'danqing-engine\[faiss\]'"),
        (lambda modules: modules(None), "cuda", r"--neighbours faiss: .*pip install faiss-gpu"),
        (
            lambda modules: None,
            "cuda",
            r"--neighbours faiss: FAISS \S+ has no GpuIndexFlatIP.search_ex; pip install faiss-gpu",
        ),
    ],
)
def test_a_missing_package_is_named(
    change: Callable[[Callable[[Any], None]], None], kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(lambda module: monkeypatch.setitem(sys.modules, "faiss", module))
    with pytest.raises(DanqingError, match=message):
        choose_index("faiss", kind)
    with pytest.raises(DanqingError, match="--neighbours: no 'fais' is installed; did you mean 'faiss'"):
        choose_index("fais", kind)
    assert set(INDEXES) >= {"tiles", "lists", "faiss"}
