"""The engine beside the plain script: same crawl, same models, same figures, same cores, in turn.

    python -m profiling.bench.end_to_end --data "photos/*.tar" --captions captions.parquet
    python -m profiling.bench.end_to_end --data DIR --everything      # no gates: every figure of every pair
    python -m profiling.bench.end_to_end --data DIR --memory          # peak memory, and with ten times the shards

Every run is a process of its own, held to --cores cores, with a fresh output folder. Start-up is measured, too: the
same command over the crawl's first 16 pairs; rates "without start-up" are those of the pairs beyond them.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import jieba
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from engine.errors import DanqingError
from engine.recipe import load_recipe
from engine.sources import Layout, Sample, find_shards, open_shard
from profiling.bench import machine
from profiling.bench.measured import Measured, first_cores, measured
from profiling.bench.plain_text import is_word
from trt_models.card import load_card
from trt_models.store import onnx_path

FEW, SEED = 16, 20260122
PACKAGES = ("onnxruntime", "numpy", "nvidia-nvimgcodec-cu13", "numba", "pillow",
            "opencv-python-headless", "jieba", "opencc", "pyarrow")  # fmt: skip
IDENTITY = ("shard", "row", "key", "uid", "url", "caption", "error", "feature_row", "gated_at")

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


# ── the crawl ──


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
    demo = resources.files("engine.demo") / "photos.yaml"
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


# ── runs ──


class Bench:
    """Runs either side over shards, on so many cores."""

    def __init__(self, folder: Path, cores: int, everything: bool) -> None:
        self.folder, self.everything = folder, everything
        self.cores = first_cores(cores)
        models = load_recipe("embedded").models
        self.models = [str(onnx_path(load_card(models[role])))
                       for role in ("image_embedding", "image_safety", "text_embedding")]  # fmt: skip
        self._runs = 0

    def engine(self, shards: Sequence[Path]) -> Measured:
        command = [sys.executable, "-m", "engine.cli", "curate", *map(str, shards), "--recipe", "embedded"]
        return self._run(command + ["--score-everything"] * self.everything)

    def plain(self, shards: Sequence[Path]) -> Measured:
        command = [sys.executable, "-m", "profiling.bench.plain", *map(str, shards), "--models", *self.models]
        return self._run([*command, "--threads", str(len(self.cores)), *["--everything"] * self.everything])

    def _run(self, command: list[str]) -> Measured:
        self._runs += 1
        output = self.folder / f"run{self._runs:03d}"
        return measured([*command, "-o", output], self.cores, output)


def stages(run: Measured) -> dict[str, tuple[int, float]]:
    """Part → rows and seconds: the plain script's own figures, or the table that `danqing curate` printed."""
    timing = run.folder / "timing.json"
    if timing.exists():
        return {name: (part["rows"], part["seconds"]) for name, part in json.loads(timing.read_text()).items()}
    line = re.compile(r"^ +([a-z ]+?) +([\d,]+) +([\d,.]+) +[\d.]+% +[\d,]+ +[\d.]+ +[\d.]+ *$", re.M)
    printed = line.findall(run.folder.with_suffix(".log").read_text(encoding="utf-8"))
    return {name: (int(rows.replace(",", "")), float(seconds.replace(",", ""))) for name, rows, seconds in printed}


# ── what came out ──


def scores_of(run: Measured) -> pd.DataFrame:
    """Every figure of a run by key, and `dropped_by` (None: kept)."""
    plain = run.folder / "scores.parquet"
    if plain.exists():
        return pd.read_parquet(plain).set_index("key")
    parts = []
    for path in sorted((run.folder / "scores").glob("*.parquet")):
        verdicts = pd.read_parquet(run.folder / "verdicts" / path.name, columns=["key", "dropped_by"])
        parts.append(pd.read_parquet(path).merge(verdicts, on="key"))
    return pd.concat(parts).set_index("key")


def print_agreement(engine: pd.DataFrame, plain: pd.DataFrame) -> None:
    """How far the two sides' figures lie apart, where both have one."""
    plain = plain.reindex(engine.index)
    mine, theirs = (frame["dropped_by"].astype(object).where(frame["dropped_by"].notna(), "kept")
                    for frame in (engine, plain))  # fmt: skip
    table = Table(box=box.SIMPLE_HEAD, title="agreement, figure by figure", title_justify="left")
    for name in ("figure", "pairs", "equal", "median |difference|", "largest |difference|", "range"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for name in engine.columns:
        if name in IDENTITY or name not in plain or not pd.api.types.is_numeric_dtype(engine[name]):
            continue
        a, b = (pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64) for frame in (engine, plain))
        both = ~(np.isnan(a) | np.isnan(b))
        if both.any():
            apart = np.abs(a[both] - b[both])
            table.add_row(
                name, f"{both.sum():,}", f"{(apart == 0).mean():.1%}", f"{np.median(apart):.3g}", f"{apart.max():.3g}",
                f"{a[both].min():.4g} … {a[both].max():.4g}",
            )  # fmt: skip
    both = engine["text_clean"].notna() & plain["text_clean"].notna()
    equal = (engine["text_clean"] == plain["text_clean"])[both].mean()
    table.add_row("text_clean", f"{both.sum():,}", f"{equal:.1%}", "", "", "")
    console.print(table)
    kept = (mine == "kept") & (theirs == "kept")
    console.print(
        f"verdicts: {(mine == theirs).sum()} of {len(mine)} pairs fall by the same criterion or stay on both sides; "
        f"kept: engine {(mine == 'kept').sum()}, plain {(theirs == 'kept').sum()}, both {kept.sum()}"
    )
    for key in engine.index[mine != theirs][:10]:
        console.print(f"  {key}: engine {mine[key]}, plain {theirs[key]}")


# ── the two benchmarks ──


def compare(bench: Bench, pairs: list[Sample], rounds: int, shards: int) -> None:
    """Both sides in turn; prints the table of medians, the parts and the agreement."""
    crawl = write_shards(pairs, bench.folder / "crawl", shards)
    few = write_shards(pairs[:FEW], bench.folder / "few", 1)
    sides = {"engine": bench.engine, "plain": bench.plain}
    for run in sides.values():
        run(few)  # untimed: file cache, jieba's and numba's own caches
    whole: dict[str, list[Measured]] = {name: [] for name in sides}
    start: dict[str, list[Measured]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, run in list(sides.items())[:: 1 if number % 2 == 0 else -1]:
            start[name].append(run(few))
            whole[name].append(run(crawl))
            last = whole[name][-1]
            line = (
                f"round {number + 1}, {name}: {last.wall:.2f} s, {last.cpu:.2f} s CPU, others {last.others:.2f} cores"
            )
            console.print(line, style="dim")

    figures: dict[str, dict[str, float]] = {}
    for name in sides:
        wall, cpu = median(m.wall for m in whole[name]), median(m.cpu for m in whole[name])
        begin, begin_cpu = median(m.wall for m in start[name]), median(m.cpu for m in start[name])
        figures[name] = {
            "pairs/s, end to end": len(pairs) / wall,
            "pairs/s, without start-up": (len(pairs) - FEW) / (wall - begin),
            "wall, s": wall,
            f"wall for {FEW} pairs (start-up), s": begin,
            "CPU, s": cpu,
            "CPU without start-up, ms a pair": 1000 * (cpu - begin_cpu) / (len(pairs) - FEW),
            "cores busy with other processes": median(m.others for m in whole[name]),
            "peak memory, MiB": max(m.peak_mib for m in whole[name]),
        }
    mode = "every figure of every pair" if bench.everything else "gated"
    table = Table(
        box=box.SIMPLE_HEAD, title_justify="left",
        title=f"{len(pairs)} pairs, {len(bench.cores)} cores, medians of {rounds} rounds, {mode}",
    )  # fmt: skip
    for name in ("", "engine", "plain", "engine / plain"):
        table.add_column(name, justify="right" if name else "left")
    for name, value in figures["engine"].items():
        other = figures["plain"][name]
        table.add_row(name, f"{value:,.2f}", f"{other:,.2f}", f"{value / other:.2f}" if other else "")
    console.print(table)
    print_parts(whole)
    print_agreement(scores_of(whole["engine"][-1]), scores_of(whole["plain"][-1]))


def print_parts(whole: dict[str, list[Measured]]) -> None:
    """Where the time goes: medians over the rounds."""
    for name, runs in whole.items():
        measured = [stages(run) for run in runs]
        if name == "engine":
            noted = [json.loads((run.folder / "run.json").read_text())["times"]["score_seconds"] for run in runs]
            title = f"engine (run.json: score_seconds {median(noted):.2f})"
        else:
            title = "plain"
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for column in ("part", "pairs in", "seconds", "ms a pair"):
            table.add_column(column, justify="left" if column == "part" else "right")
        for part, (rows, _) in measured[0].items():
            seconds = median(parts[part][1] for parts in measured)
            table.add_row(part, f"{rows:,}", f"{seconds:.2f}", f"{1000 * seconds / rows:.2f}" if rows else "")
        console.print(table)


def memory(bench: Bench, pairs: list[Sample], shards: int) -> None:
    """Peak memory of `danqing curate` over the crawl, and over ten times as many shards."""
    once = bench.engine(write_shards(pairs, bench.folder / "once", shards))
    console.print(f"{shards} shards, {len(pairs)} pairs: peak {once.peak_mib:,.0f} MiB, {once.wall:.1f} s")
    many = bench.engine(write_shards(pairs, bench.folder / "many", shards, copies=10))
    console.print(f"{10 * shards} shards, {10 * len(pairs)} pairs: peak {many.peak_mib:,.0f} MiB, {many.wall:.1f} s")
    console.print(f"10 × the data: {many.peak_mib / once.peak_mib:.2f} × the peak")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="INPUT", help="tars, folders, globs")
    parser.add_argument("--captions", type=Path, metavar="PARQUET", help="column 'text': lines for bare pictures")
    parser.add_argument("--pairs", type=int, default=240)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--everything", action="store_true", help="no gates on either side")
    parser.add_argument("--memory", action="store_true", help="peak memory of the engine, and with ten times the data")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep crawl, runs and logs in this new folder")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="danqing-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        bench = Bench(folder, options.cores, options.everything)
        pairs = collect(options.data, options.pairs, options.captions)
        if len(pairs) <= FEW:
            raise DanqingError(f"{len(pairs)} pairs with pictures; the benchmark needs more than {FEW}")
        console.print(f"{machine(PACKAGES)}; {options.cores} cores", style="dim", soft_wrap=True)
        if options.memory:
            memory(bench, pairs, options.shards)
        else:
            compare(bench, pairs, options.rounds, options.shards)
    except DanqingError as problem:
        print(f"end_to_end: {problem}", file=sys.stderr)
        return 2
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
