"""EVALUATE: measures two towers on a suite, and compares what two of them found."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import read_json, write_json
from danqing.engine.core.progress import OpenProgress, Progress, silent
from danqing.engine.evaluate import metrics, tables
from danqing.engine.evaluate.metrics import Interval, Outcomes
from danqing.engine.evaluate.suites import HAN, RETRIEVAL, Dataset, Example, Suite
from danqing.engine.evaluate.towers import Towers

PICTURES, PICTURE_BYTES = 256, 64 << 20
"""Most pictures, and most encoded bytes, that are held at a time."""
BLOCK = 1 << 24
"""Most similarities that are held at a time."""
NAMED_BROKEN = 5
"""Undecodable pictures that are named."""


@dataclass(frozen=True)
class Row:
    """What one model does on one data set: a row of clip-benchmark's results.

    Attributes:
        dataset: name of the data set.
        model: name of the model.
        task: `zeroshot_classification` or `zeroshot_retrieval`.
        language: of the classes or texts, `zh` or `en`.
        metrics: name → value from 0 to 1.
        pictures, texts: how many were compared; for classification, the classes.
        broken: ids of the pictures that do not decode and are in no metric.
        content: hash of the pictures' ids and what is right for them: two rows with equal ones can be compared.
        outcomes: what the metrics are made of.
    """

    dataset: str
    model: str
    task: str
    language: str
    metrics: dict[str, float]
    pictures: int
    texts: int
    broken: tuple[str, ...]
    content: str
    outcomes: Outcomes = field(repr=False)

    def to_dict(self, outcomes: bool = True) -> dict[str, Any]:
        """Returns the row as JSON, with clip-benchmark's keys; `outcomes` of the pictures are what `against` needs."""
        shown = {name: getattr(self, name) for name in ("dataset", "model", "task", "metrics", "language")}
        shown |= {"pictures": self.pictures, "texts": self.texts, "undecodable": len(self.broken)}
        if not outcomes:
            return shown
        arrays = {name: _packed(array) for name, array in self.outcomes.arrays.items()}
        kept = {"classes": self.outcomes.classes, "arrays": arrays}
        return shown | {"broken": list(self.broken), "content": self.content, "outcomes": kept}


@dataclass(frozen=True)
class Evaluation:
    """One model on a suite.

    Attributes:
        model: its name.
        rows: of the suite's data sets.
    """

    model: str
    rows: tuple[Row, ...]

    @property
    def averages(self) -> list[tables.Average]:
        """The paper's averages."""
        return tables.averages((row.dataset, row.metrics) for row in self.rows)

    def row(self, dataset: str) -> Row | None:
        """Returns the row of a data set, None if there is none."""
        return next((row for row in self.rows if row.dataset == dataset), None)

    def against(self, reference: Evaluation) -> dict[str, dict[str, Interval]]:
        """Compares with another model, on every data set that both have.

        Returns:
            Data set → metric → the difference, this model minus the reference.

        Raises:
            DanqingError: no data set in common, or other pictures in one of the same name.
        """
        pairs = [(row, other) for row in self.rows if (other := reference.row(row.dataset))]
        if not pairs:
            raise DanqingError(
                f"{reference.model} was evaluated on {_names(reference.rows)}, {self.model} on {_names(self.rows)}: "
                "nothing to compare; give an evaluation of the same suite"
            )
        for row, other in pairs:
            if row.content != other.content:
                raise DanqingError(
                    f"{row.dataset}: {reference.model} was evaluated on other pictures or texts; evaluate it again "
                    "on this suite, with the same --limit"
                )
        return {row.dataset: metrics.differences(row.outcomes, other.outcomes) for row, other in pairs}


def _names(rows: Iterable[Row]) -> str:
    return ", ".join(row.dataset for row in rows) or "nothing"


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
        progress: shows the pictures that are embedded.

    Returns:
        A row for each data set.

    Raises:
        DanqingError: a data set has no picture that decodes, or a file of it is wrong; names file and line.
    """
    rows = []
    for dataset in suite.datasets:
        with progress(f"evaluate {dataset.name}", 0, "pictures") as shown:
            pictures = _Pictures(towers, dataset, limit, shown)
            measure = _retrieve if dataset.task == RETRIEVAL else _classify
            rows.append(measure(towers, dataset, pictures, templates))
            if pictures.broken:
                names = ", ".join(pictures.broken[:NAMED_BROKEN])
                more = ", …" if len(pictures.broken) > NAMED_BROKEN else ""
                shown.say(
                    f"{dataset.name}: {len(pictures.broken)} pictures do not decode and do not count: {names}{more}"
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
            for example in kept:
                self.digest.update(repr((_id(example), example.labels, example.captions)).encode())
            self.progress.advance(len(batch))
            if kept:
                yield kept, vectors[decoded]

    def check(self, found: int) -> None:
        """Raises an error if no picture was found."""
        if not found:
            raise DanqingError(
                f"{self.dataset.name}: no picture that decodes"
                + (f"; the first that does not is {self.broken[0]}" if self.broken else ", it is empty")
            )


def _id(example: Example) -> str:
    """The picture's identity in a comparison; a copy of the data set in another place has the same."""
    return xxhash.xxh128(example.picture).hexdigest()


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    batch: list[Example] = []
    size = 0
    for example in examples:
        if batch and (len(batch) == PICTURES or size + len(example.picture) > PICTURE_BYTES):
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
    """Counts what comes before the best right item of each query, in blocks of `BLOCK` similarities.

    Args:
        queries: float32 (queries, d), unit rows.
        gallery: float32 (items, d), unit rows.
        right: int (pairs, 2), query and right item, in any order.

    Returns:
        int64 (queries,); -1 for a query without a right item. For equal similarities see `metrics.ranks`.
    """
    result = np.full(len(queries), -1, np.int64)
    right = right[np.lexsort((right[:, 1], right[:, 0]))]
    rows = max(1, BLOCK // len(gallery))
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


def _packed(array: np.ndarray) -> str:
    """Returns an array as text: .npy, compressed, in base64."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode()


def _unpacked(text: str) -> np.ndarray:
    return np.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), allow_pickle=False)


def write_evaluations(path: Path, found: Iterable[Evaluation]) -> None:
    """Writes evaluation.json: `rows` with clip-benchmark's keys, and `averages`."""
    found = list(found)
    rows = [row.to_dict() for evaluation in found for row in evaluation.rows]
    write_json(path, {"rows": rows, "averages": [*averages_of(found)]})


def averages_of(found: Iterable[Evaluation]) -> Iterator[dict[str, Any]]:
    """Yields the paper's averages of each model as JSON."""
    for evaluation in found:
        for average in evaluation.averages:
            yield {"model": evaluation.model, "average": average.title, "value": average.value,
                   "missing": list(average.missing), "paper": dict(average.figures)}  # fmt: skip


def read_evaluation(path: Path) -> Evaluation:
    """Reads the first model of an evaluation.json.

    Raises:
        DanqingError: the file is missing or is no evaluation.json with outcomes.
    """
    again = "write it with `danqing evaluate MODEL --suite SUITE -o FILE`"
    content = read_json(path, again)
    try:
        rows = [_read_row(row) for row in content["rows"]]
        return Evaluation(rows[0].model, tuple(row for row in rows if row.model == rows[0].model))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, zlib.error) as problem:
        raise DanqingError(f"{path}: is no evaluation with its outcomes ({problem!r}); {again}") from None


def _read_row(row: dict[str, Any]) -> Row:
    kept = row["outcomes"]
    outcomes = Outcomes(kept["classes"], {name: _unpacked(text) for name, text in kept["arrays"].items()})
    return Row(
        row["dataset"], row["model"], row["task"], row["language"], row["metrics"], row["pictures"], row["texts"],
        tuple(row["broken"]), row["content"], outcomes,
    )  # fmt: skip
