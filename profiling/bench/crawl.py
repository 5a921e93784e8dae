"""Crawls for benchmarks: shards of real pictures, repeated with other captions until there are enough pairs."""

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
from danqing.profiling.bench.harness import SEED


def pictures(data: Sequence[str], count: int) -> list[Sample]:
    """The first samples of the data that have a picture; a DanqingError if there is none."""
    samples = (sample for shard in find_shards(data) for sample in open_shard(shard, Layout()))
    found = list(islice((sample for sample in samples if sample.image), count))
    if not found:
        raise DanqingError(f"no pictures in {' '.join(data)}")
    return found


def chinese_lines(captions: Path | None, count: int, words: tuple[int, int] | None = (8, 40)) -> list[str]:
    """Draws Chinese lines by a fixed seed, from a Parquet file or from the demo's captions.

    Args:
        captions: Parquet with a column `text`, and optionally `language`; None: the demo's captions, repeated.
        words: least and most words of a line of the Parquet; None: any number.

    Raises:
        DanqingError: the Parquet has fewer such lines.
    """
    chance = random.Random(SEED)
    if captions is None:
        demo = (resources.files("danqing.engine.demo") / "photos.yaml").read_text(encoding="utf-8")
        lines = [line for record in yaml.safe_load(demo) for line in record["captions"]]
        return [chance.choice(lines) for _ in range(count)]
    table = pq.read_table(captions)
    if "language" in table.column_names:
        chinese = [str(language).startswith("zh") for language in table["language"].to_pylist()]
        table = table.filter(pa.array(chinese))
    lines = table["text"].to_pylist()
    chance.shuffle(lines)
    if words:
        tokens = ((line, jieba.lcut(line)) for line in islice(lines, 50 * count))
        least, most = words
        lines = [line for line, cut in tokens if least <= sum(any(map(str.isalnum, t)) for t in cut) <= most]
    if len(lines) < count:
        raise DanqingError(f"{captions}: {len(lines)} suitable Chinese lines; {count} are needed")
    return lines[:count]


def repeated(samples: Sequence[Sample], captions: Path | None, count: int) -> list[Sample]:
    """Repeats the pictures, each time with another caption, until there are `count` pairs."""
    lines = chinese_lines(captions, count)
    return [replace(sample, caption=line) for sample, line in zip(cycle(samples), lines, strict=False)]


def write_shards(samples: Sequence[Sample], folder: Path, shards: int) -> list[Path]:
    """Writes the samples to tars of equal size."""
    folder.mkdir()
    size = -(-len(samples) // shards)
    paths = []
    for number in range(shards):
        paths.append(folder / f"{number:05d}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for row, sample in enumerate(samples[number * size : (number + 1) * size]):
                url = json.dumps({name: value for name, value in sample.metadata.items() if name == "url"}).encode()
                members = {sample.image_extension: sample.image, "txt": sample.caption.encode(), "json": url}
                for extension, content in members.items():
                    member = tarfile.TarInfo(f"{number:05d}{row:04d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return paths
