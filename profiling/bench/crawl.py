"""Crawls for benchmarks: real pictures with captions, as many as are wanted, in shards."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from itertools import cycle, islice
from pathlib import Path

import jieba
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from danqing.engine.core.errors import DanqingError
from danqing.engine.sources import Layout, Sample, find_shards, open_shard
from danqing.profiling.bench.plain_text import is_word

SEED = 20260122


def collect(data: Sequence[str], wanted: int, captions: Path | None) -> list[Sample]:
    """The first pairs of the data that have a picture; those without a caption get one."""
    pairs = [sample for shard in find_shards(data) for sample in islice(open_shard(shard, Layout()), wanted)]
    pairs = [sample for sample in pairs if sample.image][:wanted]
    without = [sample for sample in pairs if not sample.caption.strip()]
    if without:
        lines = chinese_lines(captions, len(without))
        for sample, line in zip(without, lines, strict=True):
            sample.caption = line
    return pairs


def chinese_lines(captions: Path | None, wanted: int) -> list[str]:
    """Lines drawn by a fixed seed: of the given Parquet, else of the demo's captions.

    Of the Parquet only lines of 8 to 40 words are taken, as long as real captions are.
    """
    chance = random.Random(SEED)
    demo = resources.files("danqing.engine.demo") / "photos.yaml"
    if captions is None:
        if not demo.is_file():
            raise DanqingError("pictures without captions: give --captions PARQUET with a column 'text'")
        lines = [line for record in yaml.safe_load(demo.read_text(encoding="utf-8")) for line in record["captions"]]
        return [chance.choice(lines) for _ in range(wanted)]
    table = pq.read_table(captions)
    if "language" in table.column_names:
        chinese = [str(language).startswith("zh") for language in table["language"].to_pylist()]
        table = table.filter(pa.array(chinese))
    lines = table["text"].to_pylist()
    chance.shuffle(lines)
    out = [line for line in islice(lines, 50 * wanted) if 8 <= sum(map(is_word, jieba.lcut(line))) <= 40]
    if len(out) < wanted:
        raise DanqingError(f"{captions}: fewer than {wanted} Chinese lines of 8 to 40 words")
    return out[:wanted]


def repeated(pairs: Sequence[Sample], captions: Path | None, wanted: int) -> list[Sample]:
    """So many pairs: pictures over and over, each time with another caption."""
    lines = chinese_lines(captions, wanted)
    return [replace(pair, caption=line) for pair, line in zip(cycle(pairs), lines, strict=False)]


def write_shards(pairs: Sequence[Sample], folder: Path, shards: int, copies: int = 1) -> list[Path]:
    """Tars of equal size; each copy's pairs have keys of their own."""
    folder.mkdir()
    size = -(-len(pairs) // shards)
    paths = []
    for number in range(shards * copies):
        paths.append(folder / f"{number:05d}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            start = number % shards * size
            for row, pair in enumerate(pairs[start : start + size]):
                own = {name: value for name, value in pair.metadata.items() if name in ("url", "license", "source")}
                members = {
                    pair.image_extension: pair.image,
                    "txt": pair.caption.encode(),
                    "json": json.dumps(own, ensure_ascii=False).encode(),
                }
                for extension, content in members.items():
                    member = tarfile.TarInfo(f"{number:05d}{row:04d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return paths
