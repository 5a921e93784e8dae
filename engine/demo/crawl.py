"""The demo crawl: photographs with correct captions, and hundreds of pairs with known defects.

It is built from the files in this folder, with the same bytes every time. Each pair's .json names its defect.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from danqing.engine.core.files import commit
from danqing.engine.demo.defects import CLEAN, DEFECTS, MISMATCH, Pair, harmless

FOLDER = resources.files("danqing.engine.demo")
BLOCKLIST = FOLDER / "blocklist.txt"

PAIRS_PER_DEFECT, SHARDS, SEED = 26, 4, 20260122


def photographs() -> list[dict[str, Any]]:
    """Reads photos.yaml: per photograph file, title, author, licence, source, two captions and one in English."""
    records: list[dict[str, Any]] = yaml.safe_load((FOLDER / "photos.yaml").read_text(encoding="utf-8"))
    return records


def pairs() -> Iterator[Pair]:
    """Yields every pair of the crawl: clean ones, those with a wrong caption, then those of each kind of defect."""
    rng = random.Random(SEED)
    records = photographs()
    originals = [
        Pair(
            photo=record["file"],
            image=(FOLDER / "photos" / record["file"]).read_bytes(),
            caption=record["captions"][0],
            url=f"https://photos.example.com/{record['file']}",
        )
        for record in records
    ]
    # Every third photograph only has a wrong caption: with a correct pair as well, it would be a near-duplicate.
    mismatched = range(2, len(records), 3)
    clean = [position for position in range(len(records)) if position not in mismatched]
    for order, position in enumerate(clean):
        yield harmless(originals[position], order)
    for position in mismatched:
        wrong = records[(position + len(records) // 2) % len(records)]
        yield replace(originals[position], caption=wrong["captions"][1], kind=MISMATCH, expected="alignment_distance")
    for kind, (expected, plant) in DEFECTS.items():
        # A copy is a defect only if its original is in the crawl; other defects are dropped before redundancy.
        for position in rng.sample(clean, min(PAIRS_PER_DEFECT, len(clean))):
            yield plant(replace(originals[position], kind=kind, expected=expected), records[position], rng)


def build_crawl(folder: Path, shards: int = SHARDS) -> list[str]:
    """Writes the crawl as WebDataset shards in img2dataset's layout; returns their paths."""
    shuffled = list(pairs())
    random.Random(SEED).shuffle(shuffled)
    paths = []
    size = -(-len(shuffled) // shards)
    for number in range(shards):
        path = folder / f"{number:05d}.tar"
        with commit(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for position, pair in enumerate(shuffled[number * size : (number + 1) * size]):
                _add(tar, f"{number:05d}{position:04d}", pair)
        paths.append(str(path))
    return paths


def _add(tar: tarfile.TarFile, key: str, pair: Pair) -> None:
    record = {
        "key": key,
        "url": pair.url,
        "status": "success" if pair.image else "failed_to_download",
        "sha256": hashlib.sha256(pair.image).hexdigest(),
        "photo": pair.photo,
        "planted": pair.kind,
        "expected": pair.expected,
        **pair.metadata,
    }
    members = {"txt": pair.caption.encode(), "json": json.dumps(record, ensure_ascii=False).encode()}
    if pair.image:
        members = {pair.extension: pair.image} | members
    for extension, content in members.items():
        member = tarfile.TarInfo(f"{key}.{extension}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


__all__ = ["BLOCKLIST", "CLEAN", "MISMATCH", "build_crawl", "pairs", "photographs"]
