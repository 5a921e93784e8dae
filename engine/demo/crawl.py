"""The demo crawl: real photographs with true captions, and hundreds of pairs with known defects among them.

Built from what ships beside this file, the same every time. Every pair's .json says what was planted, so that a
run over it can be judged.
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

EACH, SHARDS, SEED = 26, 4, 20260122
"""Pairs planted per kind of defect, shards written, and the seed of every choice."""


def photographs() -> list[dict[str, Any]]:
    """The records of photos.yaml: file, title, author, licence, source, captions (two), english."""
    records: list[dict[str, Any]] = yaml.safe_load((FOLDER / "photos.yaml").read_text(encoding="utf-8"))
    return records


def pairs() -> Iterator[Pair]:
    """Every pair of the crawl, in the order of planting."""
    chance = random.Random(SEED)
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
    # Every third photograph appears with a wrong caption only: beside its true pair it would be a near-duplicate.
    mismatched = range(2, len(records), 3)
    clean = [position for position in range(len(records)) if position not in mismatched]
    for order, position in enumerate(clean):
        yield harmless(originals[position], order)
    for position in mismatched:
        wrong = records[(position + len(records) // 2) % len(records)]
        yield replace(originals[position], caption=wrong["captions"][1], kind=MISMATCH, expected="alignment_distance")
    for kind, (expected, plant) in DEFECTS.items():
        # A copy is a defect only beside its original; everything else falls before redundancy is looked at.
        for position in chance.sample(clean, min(EACH, len(clean))):
            yield plant(replace(originals[position], kind=kind, expected=expected), records[position], chance)


def build_crawl(folder: Path) -> list[str]:
    """Writes the crawl as WebDataset shards in img2dataset's layout; returns their paths."""
    everything = list(pairs())
    random.Random(SEED).shuffle(everything)
    paths = []
    size = -(-len(everything) // SHARDS)
    for number in range(SHARDS):
        path = folder / f"{number:05d}.tar"
        with commit(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for position, pair in enumerate(everything[number * size : (number + 1) * size]):
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
