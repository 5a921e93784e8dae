"""Searches for similar rows on a GPU give the CPU's groups: features by every index, captions, hashes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.groups import likely_components, near_components
from danqing.engine.decide.dedup.index import INDEXES
from danqing.engine.decide.dedup.products import PRODUCTS
from danqing.engine.stages.base import Context
from danqing.engine.stages.fingerprint import PerceptualHash
from danqing.profiling.bench.duplicates import planted
from danqing.trt_models.model_set import ModelSet
from tests.kernels.test_portable import find_by_faiss, find_groups, find_similar

pytestmark = pytest.mark.gpu


def test_small_searches_equal_the_cpus(gpu: Device, device: Device) -> None:
    np.testing.assert_allclose(find_groups(gpu), find_groups(device), atol=1e-9)
    assert (find_similar(gpu) == find_similar(device)).all()


def test_faiss_on_a_gpu_finds_what_it_finds_on_a_cpu(gpu: Device, device: Device) -> None:
    if missing := INDEXES["faiss"].missing("cuda"):
        pytest.skip(missing)
    np.testing.assert_allclose(find_by_faiss(gpu), find_by_faiss(device), atol=1e-9)


@pytest.mark.parametrize("index", ["lists", "faiss"])
def test_groups_of_a_lower_recall_are_parts_of_the_exact_ones(
    index: str, gpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing := INDEXES[index].missing("cuda"):
        pytest.skip(missing)
    monkeypatch.setitem(PRODUCTS, gpu.kind, PRODUCTS[gpu.kind]._replace(exact_rows=1 << 13))
    features = Features(gpu, [planted(gpu, 20_000, 64, seed=1)])
    exact = near_components(features, 0.1)
    found, recall = likely_components(features, 0.1, 0.99, index=index)
    assert recall is not None and recall.share >= 0.98
    assert (exact[found] == exact).all() and (found == exact).mean() > 0.98


def test_perceptual_hashes_equal_the_cpus(gpu: Device, device: Device) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), np.uint8)

    def hashes(where: Device) -> Any:
        batch = Batch({"row": np.arange(len(pictures)), "hash_input": where.up(pictures)})
        PerceptualHash(Context(where, ModelSet({}), frozenset()))(batch)
        return where.down(batch["perceptual_hash"])

    assert hashes(gpu).dtype == np.uint64 and (hashes(gpu) == hashes(device)).all()
