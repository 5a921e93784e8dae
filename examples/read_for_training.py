"""Reads the kept pairs of a run as a training loop does: streams the shards, decodes, makes batches.

    python examples/read_for_training.py out

The shards are plain WebDataset, so `webdataset.WebDataset(urls).decode("rgb").to_tuple("jpg;png;webp", "txt")` reads
them as well. This loop needs only the standard library, Pillow and NumPy.
"""

import io
import json
import random
import sys
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import danqing

Pair = tuple[np.ndarray, str, dict[str, Any]]


def pairs(shard: Path, size: int) -> Iterator[Pair]:
    """Image, uint8 (size, size, 3); clean caption; scores and input metadata. A pair's members are adjacent."""
    with tarfile.open(shard) as tar:
        sample: dict[str, bytes] = {}
        for member in tar:
            key, _, extension = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None
            sample["image" if extension not in ("txt", "json") else extension] = content.read()
            if extension == "json":  # the last member of a pair
                image = Image.open(io.BytesIO(sample["image"])).convert("RGB").resize((size, size))
                yield np.asarray(image), sample["txt"].decode(), json.loads(sample["json"]) | {"key": key}
                sample = {}


def batches(folder: str, size: int = 64, batch: int = 4, seed: int = 0) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Images, uint8 (batch, size, size, 3), and captions; shards in random order."""
    shards = sorted((danqing.open_run(folder).folder / "shards").glob("*.tar"))
    random.Random(seed).shuffle(shards)
    stream = (pair for shard in shards for pair in pairs(shard, size))
    while some := list(islice(stream, batch)):
        images, captions, _ = zip(*some, strict=True)
        yield np.stack(images), list(captions)


def main(folder: str) -> None:
    for images, captions in batches(folder):
        print(images.shape, images.dtype, captions[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
