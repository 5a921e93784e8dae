from __future__ import annotations

import numpy as np
import pytest

from engine.dedup import neighbours
from engine.dedup.groups import group_rows
from engine.dedup.neighbours import edges
from engine.dedup.representatives import nearest_to_centroid


def crowd(seed: int, rows: int = 300, dimension: int = 24) -> np.ndarray:
    """Unit vectors, many of them near-copies of others."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(rows // 6, dimension))
    vectors = centres[rng.integers(0, len(centres), rows)] + 0.12 * rng.normal(size=(rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def pairs_of(found: object) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for left, right in found for a, b in zip(left, right, strict=True)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("block", [7, 64, 2048])
def test_every_pair_is_found_whatever_the_tiles(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    features = crowd(1).astype(np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    left, right = np.nonzero(np.triu(1 - unit @ unit.T < 0.1, 1))
    expected = set(zip(left.tolist(), right.tolist(), strict=True))
    assert len(expected) > 300
    assert pairs_of(edges(crowd(1), 0.1)) == expected


def test_a_pair_at_the_threshold_is_decided_exactly() -> None:
    features = np.array([[1, 0], [0.8, 0.6]], np.float32)  # cosine 0.8 but for float32's rounding of 0.8
    distance = 1 - neighbours.cosines(features, np.array([0]), np.array([1]))[0]
    assert pairs_of(edges(features, distance + 1e-12)) == {(0, 1)}
    assert pairs_of(edges(features, distance - 1e-12)) == set()


def test_identical_pictures_form_one_set_and_the_first_stays() -> None:
    features = np.repeat(crowd(2, 6), 500, axis=0)
    group = group_rows(len(features), edges(features, 1e-4))
    stays = nearest_to_centroid(features, group)
    assert np.unique(stays).tolist() == [0, 500, 1000, 1500, 2000, 2500]


def test_the_one_nearest_to_the_centroid_stays() -> None:
    angles = np.deg2rad([0, 10, 20, 90])
    features = np.stack([np.cos(angles), np.sin(angles)], 1)
    group = np.array([0, 0, 0, 3])
    assert nearest_to_centroid(features, group).tolist() == [1, 1, 1, 3]


def test_chains_are_one_set() -> None:
    angles = np.deg2rad([0, 20, 40, 60])
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert group_rows(4, edges(features, 1 - np.cos(np.deg2rad(21)))).tolist() == [0, 0, 0, 0]
