"""Hashes of texts: against the reference's values and against sets of Python strings."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from danqing.engine.core.strings import Strings
from danqing.kernels.text import hashes
from danqing.kernels.text.hashes import BAND_HASHES, SHINGLE_CHARACTERS, find_shingles, hash_texts
from tests.kernels.text.texts import DIFFICULT_TEXTS, random_texts

LINE = "窗台上的一只橘猫正在看着外面的小鸟，a cat 😀 looks out".encode()


def shingles_of(text: str) -> frozenset[str]:
    whole = frozenset([text] if text else [])
    return frozenset(text[i : i + SHINGLE_CHARACTERS] for i in range(len(text) - SHINGLE_CHARACTERS + 1)) or whole


def jaccard_distance(a: str, b: str) -> float:
    x, y = shingles_of(a), shingles_of(b)
    return 1 - len(x & y) / len(x | y) if x | y else 0.0


def test_hashes_equal_those_of_mmh3(device: Any) -> None:
    texts = ["一只橘猫", "a", "", "0123456789abcdef"]
    expected = [
        "86b43785a1e45dd3d708e27fc95d6e9d",
        "897859f6655555855a890e51483ab5e6",
        "",
        "a7d14acf946de04bda08a7635c5bc387",
    ]
    assert hash_texts(device, Strings.of(texts)).arrow().to_pylist() == expected
    assert hash_texts(device, Strings.of(texts[:0])).rows == 0
    tails = [LINE[:size] for size in range(1, 60)]  # every length of the last block; cut within characters
    found = hash_texts(device, Strings.of(pa.array(tails, pa.large_binary()))).arrow()
    digest = hashlib.sha256("".join(found.to_pylist()).encode()).hexdigest()
    assert (
        digest == "010d811a556ed4c023e76705bf30307734c075058791db7f6ee852b0f33aad65"
    )  # of mmh3.hash_bytes(tail).hex(), one after the other


def test_rows_of_a_slice_hash_as_alone(device: Any) -> None:
    texts = [text for text in random_texts(40) if text]
    part = Strings.of(pa.array(texts, pa.large_string())[7:30])
    alone = [hash_texts(device, Strings.of([text])).arrow()[0].as_py() for text in texts[7:30]]
    assert hash_texts(device, part).arrow().to_pylist() == alone
    assert len(set(alone)) == len(set(texts[7:30]))


def test_shingles_are_sets_of_characters(device: Any) -> None:
    texts = [*DIFFICULT_TEXTS, *random_texts(200), "", "a", "ab", "猫", "猫😀", "哈哈哈哈哈哈", "x" * 5000]
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    found = find_shingles(device, Strings.of(texts))
    assert found.counts.tolist() == [len(shingles_of(text)) for text in texts]
    for begin, count in zip(found.begins.tolist(), found.counts.tolist(), strict=True):
        assert (np.diff(found.hashes[begin : begin + count].astype(np.int64)) > 0).all()


def test_jaccard_distances_are_exact(device: Any) -> None:
    rng = np.random.default_rng(5)
    texts = ["".join(rng.choice(list("猫狗鸟鱼ab"), rng.integers(0, 12))) for _ in range(300)]
    left, right = rng.integers(0, 300, (2, 5000))
    out = np.empty(5000)
    hashes.measure_jaccard.launch(device, 5000, left, right, find_shingles(device, Strings.of(texts)), out)
    expected = [jaccard_distance(texts[a], texts[b]) for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(out, expected, atol=1e-12)


@pytest.mark.parametrize("changed", [2, 6, 12])
def test_the_share_of_equal_band_keys_is_the_power_of_the_similarity(device: Any, changed: int) -> None:
    """In 4,000 pairs of 60 characters that differ in the last ones, within four standard deviations."""
    rng = np.random.default_rng(changed)
    words = rng.integers(0x4E00, 0x9FA5, (4000, 60))
    others = np.concatenate([words[:, :-changed], rng.integers(0x4E00, 0x9FA5, (4000, changed))], 1)
    texts = ["".join(map(chr, row)) for row in (*words.tolist(), *others.tolist())]
    keys = np.empty((3, 8000), np.uint64)
    for band, out in enumerate(keys):
        hashes.write_band_keys.launch(device, 8000, find_shingles(device, Strings.of(texts)), band, out)
    similarity = (58 - changed) / (58 + changed)
    share = similarity**BAND_HASHES
    assert abs((keys[:, :4000] == keys[:, 4000:]).mean() - share) < 4 * (share * (1 - share) / 12000) ** 0.5
    assert len(np.unique(keys[:, 0])) == 3  # the bands' hash functions differ
