"""Near-duplicate groups against their definition: all cosines in float64, a flood fill, means of unit vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from danqing.engine.core.device import Device, open_device
from danqing.engine.decide.dedup import faiss_index, folding, groups
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.fingerprints import group_equal, group_hashes
from danqing.engine.decide.dedup.folding import Folding
from danqing.engine.decide.dedup.index import INDEXES
from danqing.engine.decide.dedup.products import PRODUCTS
from tests.engine.decide.runs import on_circle


def crowd(seed: int, rows: int = 300, dimension: int = 24) -> np.ndarray:
    """float16 vectors, many of them near-copies of others."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(rows // 6, dimension))
    vectors = centres[rng.integers(0, len(centres), rows)] + 0.12 * rng.normal(size=(rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def spread(found: groups.Groups, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group, representative and distance of all rows; those in no group represent themselves."""
    group, representative, distance = np.arange(rows), np.arange(rows), np.zeros(rows)
    group[found.members], representative[found.members] = found.group, found.representative
    distance[found.members] = found.distance
    return group, representative, distance


def gaps(vectors: np.ndarray) -> np.ndarray:
    """Cosine distances, float64 (rows, rows)."""
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return 1 - unit @ unit.T


def components(edge: np.ndarray) -> list[int]:
    """The smallest row of each row's component, by relaxation."""
    label = np.arange(len(edge))
    while True:
        lowest = np.where(edge | np.eye(len(edge), dtype=bool), label, len(edge)).min(1)
        if (lowest == label).all():
            return label.tolist()
        label = lowest


@pytest.fixture(params=["tiles", "faiss"])
def index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The exact indexes; FAISS looks for so few rows at once that some are asked for again, and some by tiles."""
    monkeypatch.setattr(faiss_index, "NEAREST", (4, 9))
    monkeypatch.setattr(faiss_index, "RESULTS", 1000)
    return str(request.param)


def joined(device: Device, vectors: np.ndarray, within: float, index: str) -> list[int]:
    found: list[int] = groups.near_components(Features(device, [vectors]), within, index=index).tolist()
    return found


@pytest.mark.parametrize(
    ("tile", "block", "threads", "folded"),
    [(7, 13, 1, True), (7, 10, 2, True), (64, 128, 3, True), (2048, 4096, 2, False)],
)
def test_groups_equal_the_definition_for_all_tiles_and_threads(
    monkeypatch: pytest.MonkeyPatch, tile: int, block: int, threads: int, folded: bool, index: str
) -> None:
    monkeypatch.setitem(PRODUCTS, "cpu", PRODUCTS["cpu"]._replace(tile=tile, block=block))
    if folded:
        monkeypatch.setattr(folding, "MIN_ROWS_FOR_FOLDING", 1)
        monkeypatch.setattr(folding, "WIDTHS", (5,))
        monkeypatch.setattr(folding, "CHECK_COST", 0)
    for seed, within in ((1, 0.1), (2, 0.02), (3, 0.3)):
        expected = components(gaps(crowd(seed)) < within)
        assert 5 < len(set(expected)) < 290
        with open_device(threads=threads) as device:
            assert (Folding.fit(Features(device, [crowd(seed)]), 1 - within).basis is not None) == folded
            assert joined(device, crowd(seed), within, index) == expected


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("width", [2, 5, 17, None])
def test_a_folded_product_is_never_below_the_cosine(
    device: Device, width: int | None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rounding of the kind of device: factors and product in its type, sums in float32."""
    monkeypatch.setitem(PRODUCTS, "cpu", PRODUCTS[kind])
    features = Features(device, [crowd(1)])
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(24, width or 24)))[0].astype(np.float32)
    short = Folding(directions if width else None)(features)
    assert short.shape == (300, width + 1 if width else 24) and short.dtype == PRODUCTS[kind].kind
    wide = short.astype(np.float32)
    product = (wide @ wide.T).astype(short.dtype).astype(np.float64)
    short_of = (1 - gaps(crowd(1)) - product).max()
    assert short_of <= PRODUCTS[kind].slack
    assert width or short_of > PRODUCTS[kind].slack / 1e4  # the slack is not far above the error


def test_a_pair_at_the_threshold_is_decided_exactly(device: Device, index: str) -> None:
    vectors = np.array([[1, 0], [0.8, 0.6]], np.float16)
    distance = gaps(vectors)[0, 1]
    assert joined(device, vectors, distance + 1e-12, index) == [0, 0]
    assert joined(device, vectors, distance - 1e-12, index) == [0, 1]


def test_vectors_without_direction_have_no_neighbours(device: Device, index: str) -> None:
    vectors = np.repeat(on_circle(30), 6, axis=0)
    vectors[1], vectors[3, 0], vectors[4, 1] = 0, np.nan, np.inf
    assert joined(device, vectors, 0.1, index) == [0, 1, 0, 3, 4, 0]


@pytest.mark.parametrize("index", ["tiles", "faiss"])
def test_many_copies_form_one_group(device: Device, index: str) -> None:
    vectors = crowd(5, 5_000, 64)
    vectors[500:4_500] = vectors[500]
    group = np.array(joined(device, vectors, 1e-4, index))
    assert (group[500:4_500] == 500).all() and (group == 500).sum() == 4_000


@pytest.mark.parametrize("half", [False, True])
def test_a_long_chain_is_one_group(device: Device, index: str, half: bool, request: pytest.FixtureRequest) -> None:
    if half:
        request.getfixturevalue("half_precision")
    vectors = on_circle(*np.linspace(0, 180, 600))[np.random.default_rng(1).permutation(600)]
    assert set(joined(device, vectors, 1 - np.cos(np.deg2rad(0.4)), index)) == {0}
    within = 1 - np.cos(np.deg2rad(0.302))
    expected = components(gaps(vectors) < within)
    assert joined(device, vectors, within, index) == expected and 5 < len(set(expected)) < 500


@pytest.fixture
def half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds folded vectors as on a GPU, with the slack that allows for it."""
    fold = Folding.__call__
    monkeypatch.setattr(Folding, "__call__", lambda *given: fold(*given).astype(np.float16).astype(np.float32))
    monkeypatch.setitem(PRODUCTS, "cpu", PRODUCTS["cpu"]._replace(slack=PRODUCTS["cuda"].slack))


def test_very_small_numbers_count(device: Device, index: str, half_precision: None) -> None:
    """Denormal features, and features whose coordinates become denormal or zero in half precision."""
    vectors = crowd(9).astype(np.float64)
    vectors[::2] *= 2e-5
    vectors[1::2, 12:] *= 1e-6
    features = vectors.astype(np.float16)
    assert 0 < np.abs(features[::2]).max() < np.finfo(np.float16).tiny < np.abs(features[1::2]).max()
    expected = components(gaps(features) < 0.05)
    assert 20 < len(set(expected)) < 290
    assert joined(device, features, 0.05, index) == expected


def test_half_precision_loses_no_pair(
    device: Device, index: str, half_precision: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many pairs, takes that whose product is farthest too low, at a distance just below the threshold."""
    vectors = crowd(10)
    folded = Folding()(Features(device, [vectors]))
    a, b = np.unravel_index(np.argmax(1 - gaps(vectors) - folded @ folded.T), (300, 300))
    pair, within = vectors[[a, b]], gaps(vectors)[a, b] + 1e-9
    assert joined(device, pair, within, index) == [0, 0]
    monkeypatch.setitem(PRODUCTS, "cpu", PRODUCTS["cpu"]._replace(slack=0.0))
    assert joined(device, pair, within, index) == [0, 1]


def test_the_slack_covers_the_largest_rounding(
    device: Device, index: str, half_precision: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of a vector whose equal numbers lose nearly 2^-11 of their value; their product loses 2^-10."""
    dimensions = np.arange(2, 1 << 14)
    numbers = 1 / np.sqrt(dimensions)
    worst = int(dimensions[np.argmax(1 - numbers.astype(np.float16) / numbers)])
    copies = np.ones((2, worst), np.float16)
    assert joined(device, copies, 1e-9, index) == [0, 0]
    monkeypatch.setitem(PRODUCTS, "cpu", PRODUCTS["cpu"]._replace(slack=9e-4))
    assert joined(device, copies, 1e-9, index) == [0, 1]


def test_features_are_read_from_memory_mapped_files(device: Device, tmp_path: Path) -> None:
    vectors, rows = crowd(4), np.array([250, 3, 3, 99, 0])
    for number, part in enumerate(np.split(vectors, [100, 100])):
        np.save(tmp_path / f"{number}.npy", part)
    blocks = [np.load(path, mmap_mode="r") for path in sorted(tmp_path.glob("*.npy"))]
    expected = vectors[rows].astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(Features(device, blocks, rows).unit(), expected, atol=1e-6)
    np.testing.assert_allclose(Features(device, blocks).take(rows).unit(), expected, atol=1e-6)


def test_rows_known_before_are_not_compared_with_each_other(device: Device, index: str) -> None:
    vectors = crowd(6)
    found = groups.near_components(Features(device, [vectors]), 0.1, earlier=np.arange(200), index=index)
    edge = gaps(vectors) < 0.1
    edge[:200, :200] = False
    assert found.tolist() == components(edge)


def test_the_nearest_of_others_is_found(device: Device, index: str) -> None:
    vectors, others = crowd(7), np.repeat(crowd(7)[::3], 2, axis=0)
    distance = gaps(np.concatenate([vectors, others]))[:300, 300:]
    expected = np.where(distance.min(1) < 0.05, distance.argmin(1), -1)
    nearest, found = INDEXES[index]().nearest(Features(device, [vectors]), Features(device, [others]), 0.05)
    assert (nearest == expected).all() and 0 < (nearest < 0).sum() < 200
    np.testing.assert_allclose(found, np.where(expected >= 0, distance.min(1), np.nan), atol=1e-12)
    nothing = Features(device, [vectors[:0]])
    assert (INDEXES[index]().nearest(Features(device, [vectors]), nothing, 0.05)[0] == -1).all()
    assert len(INDEXES[index]().nearest(nothing, Features(device, [vectors]), 0.05)[0]) == 0


def test_the_row_nearest_to_the_centroid_is_the_representative(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "GROUPS_PER_BATCH", 2)
    vectors = np.concatenate([on_circle(0, 10, 20, 90), crowd(8, 60, 2)])
    features = Features(device, [vectors])
    group, representative, distance = spread(
        groups.near_groups(features, 0.03, groups.nearest_to_centroid(features), None), len(features)
    )
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    for number in np.unique(group):
        members = np.flatnonzero(group == number)
        closeness = unit[members] @ unit[members].mean(0)
        assert (representative[members] == members[np.argmax(closeness > closeness.max() - 1e-11)]).all()
    np.testing.assert_allclose(distance, gaps(vectors)[np.arange(len(vectors)), representative], atol=1e-12)
    assert (distance[representative == np.arange(len(representative))] == 0).all()


def test_the_first_of_equal_rows_is_the_representative(device: Device) -> None:
    features = Features(device, [np.repeat(crowd(2, 6), 500, axis=0)])
    found = groups.near_groups(features, 1e-4, groups.nearest_to_centroid(features), None)
    assert np.unique(found.representative).tolist() == [0, 500, 1000, 1500, 2000, 2500]


def test_the_first_row_with_the_highest_value_is_the_representative() -> None:
    group = np.array([0, 1, 0, 1, 0, 5, 6, 6])
    values = np.array([1, 2, 3, 2, 3, 0, np.nan, -np.inf])
    representative = groups.representatives(group, np.arange(8), groups.highest(values))
    assert representative.tolist() == [2, 1, 2, 1, 2, 5, 6, 6]
    assert groups.representatives(group, np.arange(8), groups.first).tolist() == [0, 1, 0, 1, 0, 5, 6, 6]


def test_a_chain_is_one_group_up_to_the_largest_diameter(device: Device, index: str) -> None:
    features = Features(device, [on_circle(0, 20, 40, 60, 80, 100, 200)])
    near, far = 1 - np.cos(np.deg2rad(21)), 1 - np.cos(np.deg2rad(41))
    group, representative, _ = spread(groups.near_groups(features, near, groups.first, None, index=index), 7)
    assert group.tolist() == representative.tolist() == [0] * 6 + [6]
    group, representative, distance = spread(groups.near_groups(features, near, groups.first, far, index=index), 7)
    assert group.tolist() == representative.tolist() == [0, 0, 0, 3, 3, 3, 6]
    assert distance.max() < far


def test_equal_values_form_groups() -> None:
    assert group_equal(np.array([7, 3, 7, 9, 3])).tolist() == [0, 1, 0, 3, 1]


@pytest.mark.parametrize("within", [0, 1, 4, 8])
def test_hashes_that_differ_in_few_bits_form_groups(device: Device, within: int) -> None:
    rng = np.random.default_rng(within)
    hashes = rng.integers(0, 2**64, 40, np.uint64)[rng.integers(0, 40, 400)]
    for _ in range(5):  # up to five bits of every hash change
        hashes ^= np.where(rng.random(400) < 0.4, np.uint64(1) << rng.integers(0, 64, 400, np.uint64), np.uint64(0))
    expected = components(np.bitwise_count(hashes[:, None] ^ hashes[None]) <= within)
    assert group_hashes(device, hashes, within).tolist() == expected
    assert group_hashes(device, hashes[:0], within).tolist() == []
