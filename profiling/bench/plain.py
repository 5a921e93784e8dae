"""The opponent: what a competent engineer writes in a good day, without the engine, with the usual libraries.

tarfile, Pillow, OpenCV, jieba, OpenCC, fastText, SentencePiece, ONNX Runtime with its defaults, NumPy. The same
models, figures and thresholds as `danqing curate --recipe embedded`; a process a core, shards dealt out among them,
models in batches of `--batch`, and a pair that fails goes no further, unless `--everything`. From the project it takes
the recipe, the model cards and the files they name, and the stopwatch; every figure is computed here.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from danqing.engine.core.spans import Span, Spans
from danqing.engine.recipe.criteria import Redundancy, Threshold
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.profiling.bench.plain_text import Texts
from danqing.trt_models.card import ImageInput, load_card

CHUNK = 256
FILTERS = {"cubic": Image.Resampling.BICUBIC, "linear": Image.Resampling.BILINEAR}

Pair = dict[str, Any]


def read(shards: list[Path]) -> Iterator[Pair]:
    """The pairs of WebDataset shards; a pair's members stand together."""
    for shard in shards:
        with tarfile.open(shard) as tar:
            for key, members in groupby(tar, lambda member: member.name.partition(".")[0]):
                pair: Pair = {"key": key, "image": b"", "caption": "", "url": "", "extension": ""}
                for member in members:
                    content, extension = tar.extractfile(member).read(), member.name.partition(".")[2]  # type: ignore
                    if extension == "txt":
                        pair["caption"] = content.decode("utf-8", "replace")
                    elif extension == "json":
                        pair["url"] = json.loads(content).get("url") or ""
                    else:
                        pair["image"], pair["extension"] = content, extension
                yield pair


def picture(pair: Pair, inputs: dict[str, ImageInput], passes: Callable[[Pair], bool]) -> None:
    """Decodes a picture, measures it, and makes the models' inputs of it; one that cannot be read stays without."""
    try:
        image: Image.Image = ImageOps.exif_transpose(Image.open(io.BytesIO(pair["image"])))
        pair |= {"readable": 1, "aspect_ratio": image.width / image.height, "shortest_edge": min(image.size)}
        if not passes(pair):
            return
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    except Exception as problem:  # Pillow raises many kinds
        pair["error"] = str(problem)
        return
    grey = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY)
    histogram = cv2.calcHist([grey], [0], None, [256], [0, 256]) / grey.size
    histogram = histogram[histogram > 0]
    pair |= {
        "decodable": 1,
        "pixel_std": float(grey.std()),
        "laplacian_variance": float(cv2.Laplacian(grey, cv2.CV_64F).var()),
        "image_entropy": float(-(histogram * np.log2(histogram)).sum()),
    }
    if passes(pair):
        pair |= {role: resized(image, wanted) for role, wanted in inputs.items()}


def resized(image: Image.Image, wanted: ImageInput) -> np.ndarray:
    """uint8 (size, size, 3), as the card says."""
    width = height = wanted.resize
    if wanted.fit == "shorter-edge":
        width, height = (side * wanted.resize // min(image.size) for side in image.size)
    image = image.resize((width, height), FILTERS[wanted.interpolation])
    if wanted.jpeg_quality:
        image.save(buffer := io.BytesIO(), "JPEG", quality=wanted.jpeg_quality)
        image = Image.open(buffer)
    left, top = (width - wanted.size) // 2, (height - wanted.size) // 2
    return np.asarray(image.crop((left, top, left + wanted.size, top + wanted.size)))


class Models:
    """The three networks, in ONNX Runtime's default configuration on one core."""

    def __init__(self, paths: Sequence[str]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        cpu = ["CPUExecutionProvider"]
        self.image, self.safety, self.text = (onnxruntime.InferenceSession(p, options, providers=cpu) for p in paths)

    def __call__(self, pairs: list[Pair]) -> None:
        pixels, safety = (np.stack([pair.pop(f"image_{role}") for pair in pairs]) for role in ("embedding", "safety"))
        pictures, features = self.image.run(["embedding", "features"], {"pixels": pixels})
        (unsafe,) = self.safety.run(["probability"], {"pixels": safety})
        tokens = np.full((len(pairs), max(len(pair["tokens"]) for pair in pairs)), -1, np.int32)
        for row, pair in enumerate(pairs):
            tokens[row, : len(pair["tokens"])] = pair["tokens"]
        (texts,) = self.text.run(["embedding"], {"tokens": tokens})
        distances = np.linalg.norm(pictures - texts, axis=1)
        for pair, *figures in zip(pairs, features, unsafe.tolist(), distances.tolist(), strict=True):
            pair["features"], pair["unsafe_image"], pair["alignment_distance"] = figures


def decide(pairs: list[Pair], recipe: Recipe) -> None:
    """Sets `dropped_by`: the first criterion that a pair fails."""
    for criterion in recipe.criteria:
        alive = [pair for pair in pairs if "dropped_by" not in pair]
        stays = distinct(alive, criterion.within) if isinstance(criterion, Redundancy) else None
        for row, pair in enumerate(alive):
            if row not in stays if stays is not None else not holds(criterion, pair):
                pair["dropped_by"] = criterion.name


def holds(criterion: Any, pair: Pair) -> bool:
    return bool(criterion.interval.holds(pair.get(criterion.column, math.nan)))


def distinct(pairs: list[Pair], within: float) -> set[int]:
    """Of each connected set of near-duplicates, the row nearest to the set's centroid."""
    parent = list(range(len(pairs)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    features = np.stack([pair["features"] for pair in pairs]) if pairs else np.empty((0, 1), np.float32)
    for start in range(0, len(pairs), 4096):
        near = np.argwhere(features[start : start + 4096] @ features[start:].T > 1 - within) + start
        for a, b in near[near[:, 0] < near[:, 1]].tolist():
            parent[root(b)] = root(a)
    sets: dict[int, list[int]] = {}
    for row in range(len(pairs)):
        sets.setdefault(root(row), []).append(row)
    return {rows[int((features[rows] @ features[rows].mean(0)).round(6).argmax())] for rows in sets.values()}


def write(shards: list[Path], pairs: list[Pair], output: Path) -> None:
    """The kept pairs in one tar, with clean captions, and every figure of every pair as Parquet."""
    kept = {pair["key"]: pair for pair in pairs if "dropped_by" not in pair}
    with tarfile.open(output / "kept.tar", "w") as tar:
        for pair in (pair for pair in read(shards) if pair["key"] in kept):
            text = kept[pair["key"]]["text_clean"].encode()
            for extension, content in ((pair["extension"], pair["image"]), ("txt", text)):
                member = tarfile.TarInfo(f"{pair['key']}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    names = dict.fromkeys(name for pair in pairs for name in pair if name not in ("tokens", "features"))
    pq.write_table(pa.table({name: [pair.get(name) for pair in pairs] for name in names}), output / "scores.parquet")


@dataclass(frozen=True)
class Script:
    """What one process does with its shards. `models`: three ONNX files; none: no figure that needs a network."""

    recipe: Recipe
    models: tuple[str, ...]
    batch: int
    everything: bool

    @property
    def criteria(self) -> list[Threshold]:
        return [criterion for criterion in self.recipe.criteria if isinstance(criterion, Threshold)]

    def passes(self, pair: Pair) -> bool:
        """No figure that is known so far fails its criterion."""
        return self.everything or all(holds(c, pair) for c in self.criteria if c.column in pair)

    def __call__(self, shards: list[Path]) -> tuple[list[Pair], Spans]:
        spans = Spans()
        cv2.setNumThreads(1)
        with spans("open models", 0):
            cards = {role: load_card(self.recipe.models[role]) for role in ROLES}
            inputs = {role: card.image_input for role, card in cards.items() if card.image_input and self.models}
            texts, models = Texts(self.recipe, cards["text_embedding"]), Models(self.models) if self.models else None
        pairs: list[Pair] = []
        waiting: list[Pair] = []
        stream = read(shards)
        while (chunk := list(islice(stream, CHUNK))) or waiting:
            with spans("text", len(chunk)):
                for pair in chunk:
                    texts.raw(pair)
                    if self.passes(pair):
                        texts.refined(pair)
            good = [pair for pair in chunk if self.passes(pair)]
            with spans("pictures", len(good)):
                for pair in good:
                    picture(pair, inputs, self.passes)
            waiting += [pair for pair in good if "image_safety" in pair]
            while models and (len(waiting) >= self.batch or (waiting and not chunk)):
                with spans("models", len(waiting[: self.batch])):
                    models(waiting[: self.batch])
                del waiting[: self.batch]
            for pair in chunk:
                del pair["image"], pair["extension"]
            pairs += chunk
        return pairs, spans


ROLES = ("image_embedding", "image_safety", "text_embedding")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--recipe", default="embedded")
    parser.add_argument("--models", nargs=3, default=(), metavar=("IMAGE", "SAFETY", "TEXT"), help="ONNX files")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32, help="pairs a model sees at once")
    parser.add_argument("--everything", action="store_true", help="all figures of all pairs")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    script = Script(load_recipe(options.recipe), tuple(options.models), options.batch, options.everything)
    dealt = [options.shards[number :: options.processes] for number in range(options.processes)]
    with get_context("spawn").Pool(options.processes) as pool:
        parts = pool.map(script, dealt, chunksize=1)
    pairs, spans = [pair for part, _ in parts for pair in part], Spans()
    for name, span in (item for _, part in parts for item in part.items()):
        total = spans.setdefault(name, Span())
        total.rows, total.seconds = total.rows + span.rows, total.seconds + span.seconds
    with spans("decide", len(pairs)):
        decide(pairs, script.recipe)
    with spans("write", len(pairs)):
        write(options.shards, pairs, options.output)
    timing = {name: {"rows": span.rows, "seconds": round(span.seconds, 3)} for name, span in spans.items()}
    (options.output / "timing.json").write_text(json.dumps(timing, indent=1))


if __name__ == "__main__":
    main()
