"""EVALUATE: measures two towers on a suite, data set by data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import xxhash

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import OpenProgress, Progress, silent
from danqing.engine.evaluate import metrics, tables
from danqing.engine.evaluate.datasets import HAN, RETRIEVAL, Dataset, Example, Suite
from danqing.engine.evaluate.metrics import Outcomes
from danqing.engine.evaluate.results import Evaluation, Row
from danqing.engine.evaluate.towers import Towers

BATCH_PICTURES, BATCH_BYTES = 256, 64 << 20
"""Largest number of pictures, and of their encoded bytes, that are held at a time."""
BLOCK_SIMILARITIES = 1 << 24
"""Largest number of similarities that are held at a time."""
MAX_NAMED = 5
"""Largest number of undecodable pictures that are named."""


def evaluate(
    towers: Towers,
    suite: Suite,
    templates: Sequence[str] = (),
    limit: int | None = None,
    progress: OpenProgress = silent,
) -> Evaluation:
    """Measures two towers on every data set of a suite.

    Holds the encoded pictures of one batch, and for retrieval the embeddings of all pictures and texts (float32).

    Args:
        towers: the model.
        suite: the data sets.
        templates: replace those of the data sets and the engine's, with `{c}` for the name of a class.
        limit: only the first pictures of each data set; None for all.
        progress: shows the pictures that are embedded, and says which pictures and folders are left out.

    Returns:
        A row for each data set.

    Raises:
        DanqingError: a data set has no picture that decodes, or a file of it is wrong; names file and line.
    """
    rows: list[Row] = []
    for dataset in suite.datasets:
        with progress(f"evaluate {dataset.name}", 0, "pictures") as shown:
            if suite.skipped and not rows:
                shown.say(f"{suite.name}: no data sets of a known layout: {', '.join(suite.skipped)}")
            pictures = _Pictures(towers, dataset, limit, shown)
            measure = _retrieve if dataset.task == RETRIEVAL else _classify
            rows.append(measure(towers, dataset, pictures, templates))
            if pictures.broken:
                names = ", ".join(pictures.broken[:MAX_NAMED])
                more = ", …" if len(pictures.broken) > MAX_NAMED else ""
                shown.say(
                    f"{dataset.name}: left out, as they cannot be decoded: {len(pictures.broken)} ({names}{more})"
                )
    return Evaluation(towers.name, tuple(rows))


class _Pictures:
    """Embeds the pictures of a data set in batches; counts those that do not decode.

    Attributes:
        broken: where those are that do not decode.
    """

    def __init__(self, towers: Towers, dataset: Dataset, limit: int | None, progress: Progress) -> None:
        self.towers, self.dataset, self.limit, self.progress = towers, dataset, limit, progress
        self.broken: list[str] = []
        self.digest = xxhash.xxh128()

    def __iter__(self) -> Iterator[tuple[list[Example], np.ndarray]]:
        """Yields batches of pictures that decode, and their vectors; float32 (n, d)."""
        for batch in _batches(islice(self.dataset.examples(), self.limit)):
            vectors = self.towers.images([example.picture for example in batch])
            decoded: np.ndarray = np.any(vectors != 0, axis=1)
            self.broken += [example.where for example, there in zip(batch, decoded, strict=True) if not there]
            kept = [example for example, there in zip(batch, decoded, strict=True) if there]
            for example in kept:  # by content: a copy of the data set in another place has the same digest
                picture = xxhash.xxh128(example.picture).hexdigest()
                self.digest.update(repr((picture, example.labels, example.captions)).encode())
            self.progress.advance(len(batch))
            if kept:
                yield kept, vectors[decoded]

    def check(self, found: int) -> None:
        """Raises an error if no picture was found."""
        if not found:
            raise DanqingError(
                f"{self.dataset.name}: "
                + (f"no picture can be decoded; the first is {self.broken[0]}" if self.broken else "has no pictures")
            )


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Yields the pictures in batches of at most `BATCH_PICTURES` pictures and `BATCH_BYTES` bytes."""
    batch: list[Example] = []
    size = 0
    for example in examples:
        if batch and (len(batch) == BATCH_PICTURES or size + len(example.picture) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(example)
        size += len(example.picture)
    if batch:
        yield batch


def class_vectors(towers: Towers, classes: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """Makes a vector of each class: the normalised mean of its templates' embeddings, as CLIP does.

    Args:
        towers: embeds the texts.
        classes: their names.
        templates: with `{c}` where the name belongs.

    Returns:
        float32 (classes, d), unit rows.
    """
    texts = [template.replace("{c}", name) for name in classes for template in templates]
    means = towers.texts(texts).reshape(len(classes), len(templates), -1).mean(axis=1)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return means / np.where(lengths == 0, 1, lengths)


def _classify(towers: Towers, dataset: Dataset, pictures: _Pictures, templates: Sequence[str]) -> Row:
    chinese = any(HAN.search(name) for name in dataset.classes)
    chosen = templates or dataset.templates or tables.templates_for(dataset.name, chinese)
    vectors = class_vectors(towers, dataset.classes, chosen)
    classes, several = len(dataset.classes), dataset.several_labels
    known = tables.known(dataset.name)
    scored = several or classes == 2 or (known is not None and known.elevater == metrics.ELEVEN_POINTS)
    parts: dict[str, list[np.ndarray]] = {}
    for examples, embedded in pictures:
        scores = embedded @ vectors.T
        found = {"scores": scores} if scored else {}
        if several:
            found["targets"] = np.array([np.isin(np.arange(classes), example.labels) for example in examples])
        else:
            found["labels"] = np.array([example.labels[0] for example in examples], np.int32)
            found["ranks"] = metrics.ranks(scores, found["labels"]).astype(np.int32)
        for name, array in found.items():
            parts.setdefault(name, []).append(array)
    pictures.check(len(parts))
    outcomes = Outcomes(classes, {name: np.concatenate(arrays) for name, arrays in parts.items()})
    return _row(towers, dataset, pictures, outcomes, "zh" if chinese else "en", classes)


def _retrieve(towers: Towers, dataset: Dataset, pictures: _Pictures, templates: Sequence[str]) -> Row:
    parts, texts, right, places, pictures_seen = [], list[str](), list[tuple[int, int]](), dict[str, int](), 0
    for examples, embedded in pictures:
        parts.append(embedded)
        for example in examples:
            places.setdefault(example.id, pictures_seen)
            right += [(len(texts) + number, pictures_seen) for number in range(len(example.captions))]
            texts += example.captions
            pictures_seen += 1
    pictures.check(len(parts))
    if dataset.texts:
        texts, right = _kept_apart(dataset, pictures, places)
    if not texts:
        raise DanqingError(f"{dataset.name}: no picture has a caption, so there is nothing to find")
    gallery, queries = np.concatenate(parts), towers.texts(texts)
    pairs = np.array(right)
    _, first = np.unique(pairs[:, 0], return_index=True)
    found = {
        "picture_ranks": best_ranks(gallery, queries, pairs[:, ::-1]),
        "text_ranks": best_ranks(queries, gallery, pairs),
        "text_picture": pairs[first, 1],
    }
    outcomes = Outcomes(0, {name: array.astype(np.int32) for name, array in found.items()})
    return _row(towers, dataset, pictures, outcomes, "zh" if any(map(HAN.search, texts)) else "en", len(texts))


def _kept_apart(
    dataset: Dataset, pictures: _Pictures, places: dict[str, int]
) -> tuple[list[str], list[tuple[int, int]]]:
    """The texts that have a picture, and their pairs; texts of broken pictures, and beyond the limit, are left out."""
    texts, right = list[str](), list[tuple[int, int]]()
    for text in dataset.texts:
        there = [places[picture] for picture in text.pictures if picture in places]
        if not (there or pictures.broken or pictures.limit):
            raise DanqingError(
                f"{text.where}: image_ids {', '.join(text.pictures) or 'is empty'}: no such picture beside it; "
                "correct the line, or give the pictures of this split"
            )
        if there:
            right += [(len(texts), place) for place in there]
            texts.append(text.text)
            pictures.digest.update(repr((text.text, there)).encode())
    return texts, right


def best_ranks(queries: np.ndarray, gallery: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Counts what comes before the best right item of each query, in blocks of `BLOCK_SIMILARITIES` similarities.

    Args:
        queries: float32 (queries, d), unit rows.
        gallery: float32 (items, d), unit rows.
        right: int (pairs, 2), query and right item, in any order.

    Returns:
        int64 (queries,); -1 for a query without a right item. For equal similarities see `metrics.ranks`.
    """
    result = np.full(len(queries), -1, np.int64)
    right = right[np.lexsort((right[:, 1], right[:, 0]))]
    rows = max(1, BLOCK_SIMILARITIES // len(gallery))
    for start in range(0, len(queries), rows):
        low, high = np.searchsorted(right[:, 0], [start, start + rows])
        if low == high:
            continue
        asked, items = right[low:high].T
        asked = asked - start
        scores = queries[start : start + rows] @ gallery.T
        of_pair = scores[asked, items]
        order = np.lexsort((items, -of_pair, asked))  # the best item of each query first, of equal ones the first
        answered, first = np.unique(asked[order], return_index=True)
        result[start + answered] = metrics.ranks(scores[answered], items[order][first])
    return result


def _row(towers: Towers, dataset: Dataset, pictures: _Pictures, outcomes: Outcomes, language: str, texts: int) -> Row:
    return Row(
        dataset.name, towers.name, dataset.task, language, metrics.values_of(outcomes), len(outcomes), texts,
        tuple(pictures.broken), pictures.digest.hexdigest(), outcomes,
    )  # fmt: skip
