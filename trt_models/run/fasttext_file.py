"""Reads fastText's classifiers (`.ftz` and `.bin` files): arrays only, nothing in the file is executed."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from danqing.engine.core.errors import DanqingError
from danqing.kernels.text.languages import LABEL_PREFIX, LanguageModel, make_word_table

MAGIC, VERSION = 793712314, 12
HIERARCHICAL_SOFTMAX, SUPERVISED = 1, 3  # values of the settings `loss` and `model`
END_OF_LINE = b"</s>"
CENTROIDS = 256  # of each part of a quantised vector
MAX_BUCKETS, MAX_DIMENSIONS, MAX_LABELS, MAX_CHARACTERS = 1 << 24, 1 << 12, 1 << 15, 64
MAX_VALUES = 1 << 27  # of a decoded matrix: 512 MB
MAX_COUNT = 10**15  # fastText's count of nodes that the tree does not have yet


def read_classifier(path: Path) -> tuple[LanguageModel, list[str]]:
    """Reads a classifier of character n-grams with hierarchical softmax. Vectors are decoded to float32.

    Returns:
        The model, and the names of its labels, without `__label__`.

    Raises:
        DanqingError: the file is not such a classifier, or it is damaged; names the file.
    """
    try:
        return _parse(_Reader(path.read_bytes()))
    except OSError as problem:
        raise DanqingError(f"{path}: cannot read the model: {problem.strerror}") from None
    except _ContentError as problem:
        raise DanqingError(f"{path}: not a fastText classifier that can be used here: {problem}") from None


class _ContentError(Exception):
    """A file that is not a fastText model, or one of another kind."""


def _check(holds: object, message: str) -> None:
    if not holds:
        raise _ContentError(message)


class _Reader:
    """Reads little-endian numbers in turn."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, kind: str, count: int, shape: tuple[int, ...] = (-1,)) -> np.ndarray:
        """Reads `count` numbers of a NumPy type, without a copy."""
        _check(0 <= count <= (len(self.data) - self.at) // np.dtype(kind).itemsize, "it is cut short")
        array = np.frombuffer(self.data, kind, count, self.at)
        self.at += array.nbytes
        return array.reshape(shape)

    def numbers(self, layout: str) -> tuple[Any, ...]:
        """Reads numbers of a `struct` layout."""
        _check(struct.calcsize(layout) <= len(self.data) - self.at, "it is cut short")
        found = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return found

    def string(self) -> bytes:
        """Reads bytes up to a zero."""
        end = self.data.find(b"\0", self.at)
        _check(end >= 0, "it is cut short")
        found, self.at = self.data[self.at : end], end + 1
        return found


def _parse(file: _Reader) -> tuple[LanguageModel, list[str]]:
    magic, version = file.numbers("<2i")
    _check(magic == MAGIC, "it begins with other bytes")
    _check(version == VERSION, f"version {version}, not {VERSION}")
    dimensions, _, _, _, _, word_ngrams, loss, kind, buckets, shortest, longest, _, _ = file.numbers("<12id")
    _check(kind == SUPERVISED and loss == HIERARCHICAL_SOFTMAX, "the loss is not hierarchical softmax")
    _check(word_ngrams == 1, "it has n-grams of words")
    _check(0 < dimensions <= MAX_DIMENSIONS, f"{dimensions} dimensions")
    _check(0 <= shortest <= longest <= MAX_CHARACTERS and 0 < buckets <= MAX_BUCKETS, "sizes of n-grams out of range")
    entries, words, labels, _, kept = file.numbers("<3i2q")
    _check(words > 0 and 0 < labels <= MAX_LABELS and words + labels == entries, "numbers of words that do not add up")
    texts, counts = [], []
    for number in range(entries):
        texts.append(file.string())
        count, is_label = file.numbers("<qb")
        counts.append(count)
        _check(is_label == (number >= words), "words and labels are not in order")
    _check(min(counts[words:]) >= 0 and sum(counts[words:]) < MAX_COUNT, "counts of labels out of range")
    _check(END_OF_LINE in texts[:words], "it has no end of a line")
    pairs = file.take("<i4", 2 * max(kept, 0), (-1, 2))
    is_quantised = file.numbers("<B") != (0,)
    vectors = _read_matrix(file, is_quantised, dimensions)
    is_quantised = file.numbers("<B") != (0,) and is_quantised
    outputs = _read_matrix(file, is_quantised, dimensions)
    _check(len(outputs) >= labels - 1, "fewer classifiers than labels")
    rows = np.full(buckets, -1, np.int32)
    if kept < 0:  # every bucket has a vector
        _check(len(vectors) >= words + buckets, "fewer vectors than buckets")
        rows = np.arange(words, words + buckets, dtype=np.int32)
    else:
        _check(len(vectors) >= words and not (pairs < 0).any(), "n-grams out of range")
        _check((pairs[:, 0] < buckets).all() and (pairs[:, 1] < len(vectors) - words).all(), "n-grams out of range")
        rows[pairs[:, 0]] = words + pairs[:, 1]
    kept_bits = np.packbits(rows >= 0, bitorder="little")
    sizes = [shortest, longest, buckets, max(map(len, texts[:words])), texts.index(END_OF_LINE)]
    nodes, order = _make_tree(counts[words:])
    weights = np.where((order >= labels)[:, None], outputs[np.maximum(order - labels, 0)], 0).astype(np.float32)
    table = make_word_table(texts[:words])
    model = LanguageModel(np.array(sizes, np.int64), *table, kept_bits, rows, vectors, nodes, weights)
    return model, list(map(_label_name, texts[words:]))


def _label_name(label: bytes) -> str:
    prefix = LABEL_PREFIX.tobytes()
    _check(label.startswith(prefix) and label.isascii(), f"the label {label!r}")
    return label.removeprefix(prefix).decode()


def _read_matrix(file: _Reader, is_quantised: bool, dimensions: int) -> np.ndarray:
    """Reads a matrix: float32 (rows, dimensions)."""
    if not is_quantised:
        rows, columns = file.numbers("<2q")
        _check(rows > 0 and columns == dimensions, "a matrix of another shape")
        return _finite(file.take("<f4", rows * columns, (-1, dimensions)))
    has_norms = file.numbers("<B") != (0,)
    rows, columns = file.numbers("<2q")
    _check(columns == dimensions and rows * columns <= MAX_VALUES, "a matrix of another shape")
    codes = file.take("u1", *file.numbers("<i"))
    vectors = _decode(file, codes, rows, columns)
    if has_norms:
        vectors = vectors * _decode(file, file.take("u1", rows), rows, 1)
    return _finite(vectors)


def _decode(file: _Reader, codes: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Reads a product quantiser, and decodes vectors: a vector's parts are each one of `CENTROIDS` centroids.

    Args:
        file: at the quantiser.
        codes: uint8 (rows × parts,).
        rows, columns: shape of the result.
    """
    size, parts, width, last_width = file.numbers("<4i")
    _check(size == columns > 0 and width > 0 and rows > 0, "a quantiser of another shape")
    _check(parts == -(-size // width) and last_width == size - (parts - 1) * width, "a quantiser of another shape")
    _check(len(codes) == rows * parts, "a quantiser of another shape")
    codes = codes.reshape(rows, parts)
    centroids = file.take("<f4", size * CENTROIDS)
    tables = np.split(centroids, np.arange(1, parts) * CENTROIDS * width)  # the last part can be narrower
    return np.concatenate([table.reshape(CENTROIDS, -1)[codes[:, part]] for part, table in enumerate(tables)], axis=1)


def _finite(vectors: np.ndarray) -> np.ndarray:
    _check(np.isfinite(vectors).all(), "a value that is not finite")
    return vectors.astype(np.float32)


def _make_tree(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Makes fastText's Huffman tree.

    Args:
        counts: of each label, in descending order.

    Returns:
        `nodes` of `LanguageModel`, and fastText's number of each node: int64 (nodes,), labels first.
    """
    labels = len(counts)
    total = [*counts, *[MAX_COUNT] * (labels - 1)]
    children: dict[int, tuple[int, int]] = {}
    leaf, node = labels - 1, labels
    for parent in range(labels, 2 * labels - 1):
        pair = []
        for _ in range(2):
            if leaf >= 0 and total[leaf] < total[node]:
                pair.append(leaf)
                leaf -= 1
            else:
                pair.append(node)
                node += 1
        children[parent] = pair[0], pair[1]
        total[parent] = sum(total[child] for child in pair)
    order, depths = [], []
    waiting = [(2 * labels - 2, 0)]
    while waiting:
        node, depth = waiting.pop()
        order.append(node)
        depths.append(depth)
        waiting += [(child, depth + 1) for child in reversed(children.get(node, ()))]
    ends = [0] * len(order)
    for at in reversed(range(len(order))):
        end = at + 1
        for _ in children.get(order[at], ()):
            end = ends[end]
        ends[at] = end
    leaves = [number if number < labels else -1 for number in order]
    return np.array([depths, ends, leaves], np.int32).T.copy(), np.array(order)
