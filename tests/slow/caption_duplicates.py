"""Compares the search for similar captions with datasketch's MinHashLSH, on one thread; needs datasketch.

    python -m tests.slow.caption_duplicates CAPTIONS.parquet [--rows 40000] [--within 0.2]

A quarter of the captions (column `text`) is added again with one or two characters changed.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH

from danqing.engine.core.device import open_device
from danqing.engine.decide.dedup.captions import SimilarTexts, bands_for
from danqing.kernels.text.hashes import BAND_HASHES
from tests.engine.decide.test_captions import changed
from tests.kernels.text.test_hashes import jaccard_distance, shingles_of


def captions_of(path: str, rows: int) -> list[str]:
    """Draws captions and adds changed copies of a quarter of them."""
    rng = np.random.default_rng(1)
    lines = [text for text in pq.read_table(path, columns=["text"])["text"].to_pylist() if len(text) >= 8]
    drawn = [lines[i] for i in rng.choice(len(lines), rows, replace=False)]
    return drawn + [changed(rng, text, rng.integers(1, 3)) for text in drawn[: rows // 4]]


def groups_by_datasketch(texts: list[str], within: float) -> np.ndarray:
    """The first row of each row's group: candidates of an index of as many bands, decided by their exact distance."""
    bands, parent = bands_for(within), list(range(len(texts)))
    index = MinHashLSH(num_perm=bands * BAND_HASHES, params=(bands, BAND_HASHES))

    def root(row: int) -> int:
        while parent[row] != row:
            row = parent[row]
        return row

    shingles = ([shingle.encode() for shingle in shingles_of(text)] for text in texts)
    for row, signature in enumerate(MinHash.generator(shingles, num_perm=bands * BAND_HASHES, seed=1)):
        for other in index.query(signature):
            first, second = sorted((root(row), root(other)))
            if first != second and jaccard_distance(texts[row], texts[other]) <= within + 1e-9:
                parent[second] = first
        index.insert(row, signature)
    return np.array([root(row) for row in range(len(texts))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("captions")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--within", type=float, default=0.2)
    options = parser.parse_args()
    texts = captions_of(options.captions, options.rows)
    encoded = pa.array(texts, pa.large_string()).dictionary_encode()
    values = encoded.indices.to_numpy()
    with open_device("cpu", threads=1) as device:
        SimilarTexts(device, values[:100], encoded.dictionary, options.within)  # compiles the kernels
        start = time.perf_counter()
        group = SimilarTexts(device, values, encoded.dictionary, options.within).group
        ours = time.perf_counter() - start
    start = time.perf_counter()
    theirs = groups_by_datasketch(texts, options.within)
    print(f"{len(texts):,} captions: {ours:.2f} s, datasketch {time.perf_counter() - start:.2f} s")
    print(f"dropped {len(texts) - len(set(group.tolist())):,} and {len(texts) - len(set(theirs.tolist())):,}")
    print(f"rows in the same group: {(group == theirs).mean():.5f}")


if __name__ == "__main__":
    main()
