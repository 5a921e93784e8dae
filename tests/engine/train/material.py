"""Small models and written runs to train on. Nothing here imports transformers before it is needed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from danqing.engine.core.files import write_json
from danqing.engine.evaluate.evaluation import evaluate
from danqing.engine.evaluate.suites import open_suite
from danqing.engine.run.versions import current_versions

COLOURS = "红橙黄绿青蓝紫灰"
PAIRS_PER_SHARD = 32
SIDE = 32
Pair = tuple[bytes, str]


def planted_pairs(count: int, seed: int = 0, classes: int = len(COLOURS)) -> list[Pair]:
    """Noisy pictures of one colour and pattern a class, with a caption that names the class among other characters."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    colours, patterns = fixed.uniform(40, 215, (classes, 1, 1, 3)), fixed.normal(0, 40, (classes, SIDE, SIDE, 3))
    pairs = []
    for number in range(count):
        kind = number % classes
        pixels = colours[kind] + patterns[kind] + rng.normal(0, 50, (SIDE, SIDE, 3))
        caption = f"{COLOURS[kind]}{rng.choice(list('大小圆方新旧'))}的画"
        pairs.append((encoded(pixels), caption))
    return pairs


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, form)
    return buffer.getvalue()


def write_run(folder: Path, pairs: Sequence[Pair], form: str = "webdataset", recaptions: Sequence[str] = ()) -> Path:
    """Writes what training reads of a run: run.json and its shards, in the layout of `danqing write`."""
    manifest: dict[str, Any] = {"recipe": {}, "recipe_hash": "", "layout": {}, "shards": [], "models": {}}
    (folder / "shards").mkdir(parents=True)
    write_json(
        folder / "run.json",
        manifest | {"versions": current_versions(), "written": {"shards": -(-len(pairs) // PAIRS_PER_SHARD)}},
    )
    for number, first in enumerate(range(0, len(pairs), PAIRS_PER_SHARD)):
        part = pairs[first : first + PAIRS_PER_SHARD]
        uids = [hashlib.md5(f"{first + row}".encode()).hexdigest() for row in range(len(part))]
        columns: dict[str, Any] = {"uid": uids, "caption": [caption for _, caption in part]}
        if recaptions:
            columns["recaption"] = recaptions[first : first + PAIRS_PER_SHARD]
        path = folder / "shards" / f"{number:05d}"
        if form == "parquet":
            images = [{"bytes": image, "path": f"{row}.png"} for row, (image, _) in enumerate(part)]
            columns = {"image": images, "text": columns["caption"]} | columns
        else:
            _write_tar(path.with_suffix(".tar"), part)
        pq.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return folder


def _write_tar(path: Path, pairs: Sequence[Pair]) -> None:
    with tarfile.open(path, "w") as tar:
        for row, (image, caption) in enumerate(pairs):
            for extension, content in (("png", image), ("txt", caption.encode()), ("json", json.dumps({}).encode())):
                member = tarfile.TarInfo(f"{row:09d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_checkpoint(folder: Path, texts: Sequence[str], width: int = 32) -> Path:
    """Writes a small SigLIP of random weights, whose tokens are the characters of some texts."""
    from danqing.engine.train.random_model import Size, write_random_model

    return write_random_model(folder, texts, Size(width, heads=2, side=SIDE, patch=8, length=16))


def accuracy(folder: Path, suite: str, templates: Sequence[str]) -> float:
    """Zero-shot accuracy of a checkpoint on a suite."""
    from danqing.engine.train.evaluating import trained_towers
    from danqing.engine.train.model import Source

    source = Source.open(folder)
    with trained_towers("model", source.load().eval(), source, "cpu") as towers:
        return evaluate(towers, open_suite(suite), templates).rows[0].metrics["acc1"]


def journal(output: Path) -> list[dict[str, Any]]:
    """The lines of train.jsonl."""
    return [json.loads(line) for line in (output / "train.jsonl").read_text(encoding="utf-8").splitlines()]
