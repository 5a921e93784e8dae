"""Figures that need no network, beside two pipelines that people use: Data-Juicer and NeMo Curator.

    python -m danqing.profiling.bench.filters --setup-peers DIR        # once: both, each in an environment of its own
    python -m danqing.profiling.bench.filters --data 'photos/*.tar' --captions captions.parquet --peers DIR

*Pairs*, beside Data-Juicer's `dj-process`: text operators as in `profiling.bench.text`, and its filters of pictures'
aspect ratio, shape and size. These decode every picture to learn its shape, where a header is enough; so ours runs
twice, once by headers, once decoding as it does. Ours reads tars and writes Parquet, Data-Juicer reads JSON lines and
picture files and writes JSON lines: to each its usual input.

*Captions*, beside NeMo Curator's pipeline: six of its text filters (`profiling.bench.peers.curator`) and `danqing
select`, from the same Parquet to Parquet. Its filters of pictures are left out, as all of them are networks on CLIP
embeddings whose weights would have to be downloaded.

No bound drops anything, on any side, and every row must come out. Ours always computes the whole of text refinement
(script, stop words, parts of speech, entropy, terms), which is more than either peer does. Captions are drawn and
pictures repeated until there are enough. The processes of Ray, which runs NeMo Curator, outlive their parent, so that
their seconds on the cores cannot be counted.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console

from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.sources import Sample
from danqing.profiling.bench import curator, in_scratch, juicer, machine
from danqing.profiling.bench.crawl import chinese_lines, collect, repeated, write_shards
from danqing.profiling.bench.measured import FEW, Measured, Side, first_cores, measured, take_turns, turns_table

PACKAGES = ("numpy", "numba", "pillow", "nvidia-nvimgcodec-cu13", "opencc", "pyarrow")
PICTURES, SHARDS = 1000, 8
TEXT = ("unsafe_text", "words", "chinese_confidence", "stop_word_share", "unsafe_caption")
STUDY = ("latin_share", "digit_share", "symbol_share", "longest_repetition")
HEADERS = ("image_bytes", "aspect_ratio", "shortest_edge")

JUICER_PICTURES: list[dict[str, dict[str, Any]]] = [
    {"image_aspect_ratio_filter": {"min_ratio": 0.0, "max_ratio": 10.0**6}},
    {"image_shape_filter": {"min_width": 1, "min_height": 1}},
    {"image_size_filter": {"min_size": "0", "max_size": "1TB"}},
]

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


# ── inputs ──


def picture_files(pairs: Sequence[Sample], folder: Path) -> list[dict[str, object]]:
    """Data-Juicer's samples; a picture that comes again is the same file."""
    folder.mkdir()
    names: dict[bytes, Path] = {}
    for pair in pairs:
        if pair.image not in names:
            names[pair.image] = folder / f"{len(names):05d}.{pair.image_extension}"
            names[pair.image].write_bytes(pair.image)
    return [{"text": pair.caption, "images": [str(names[pair.image])]} for pair in pairs]


def caption_tables(lines: Sequence[str], folder: Path, files: int) -> Path:
    """Parquet files of equal size with `url` and `text`."""
    folder.mkdir()
    size = -(-len(lines) // files)
    for number in range(files):
        some = lines[number * size : (number + 1) * size]
        urls = [f"https://example.org/{number}/{row}.jpg" for row in range(len(some))]
        pq.write_table(pa.table({"url": urls, "text": some}), folder / f"{number:05d}.parquet")
    return folder


# ── our side ──


def write_recipe(path: Path, columns: Sequence[str], also: Sequence[str], roles: Sequence[str] = ()) -> Path:
    """A recipe whose criteria read these columns and drop nothing; with word lists, and the models for `roles`."""
    models = load_recipe("embedded").models
    recipe = {
        "recipe": path.stem,
        "models": {role: models[role] for role in ("text_safety", "caption_safety", *roles)},
        "also": list(also),
        "criteria": {column: {"min": 0} for column in columns},
    }
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


EVERY_ROW = {"score": ("scores", "gated_at"), "select": ("verdicts", "dropped_by")}
"""Command → the Parquet of every row in its output, and the column that says why a row was not measured to the end."""


def danqing(command: Sequence[str | Path], output: Path, cores: Sequence[int], rows: int) -> Measured:
    """A command of ours with a fresh output folder.

    Raises:
        DanqingError: it failed, or not every row was measured to the end.
    """
    shutil.rmtree(output, ignore_errors=True)
    took = measured([sys.executable, "-m", "danqing.engine.cli.main", *command, "-o", output], cores, output)
    table, gated = EVERY_ROW[str(command[0])]
    done = pq.read_table(output / table, columns=["error", gated])
    if any(column.null_count != rows for column in done.columns):
        raise DanqingError(f"danqing {command[0]}: of {rows} rows some failed, were dropped or are missing")
    return took


# ── the two benchmarks ──


def beside_juicer(pairs: list[Sample], peers: Path, scratch: Path, cores: Sequence[int], rounds: int) -> None:
    program = juicer.Juicer(peers, scratch, cores, JUICER_PICTURES)
    samples = picture_files(pairs, scratch / "pictures")
    sizes = {"few": FEW, "whole": len(pairs)}
    tars = {
        "few": write_shards(pairs[:FEW], scratch / "few", 1),
        "whole": write_shards(pairs, scratch / "whole", SHARDS),
    }
    for name, rows in sizes.items():
        program.prepare(name, samples[:rows])

    def score(recipe: Path, name: str) -> Measured:
        command: list[str | Path] = ["score", *tars[name], "--recipe", recipe, "--score-everything"]
        return danqing(command, scratch / "ours", cores, sizes[name])

    by_headers = write_recipe(scratch / "headers.yaml", (*TEXT, *HEADERS), STUDY)
    decoding = write_recipe(scratch / "decoding.yaml", (*TEXT, *HEADERS, "decodable"), STUDY)
    sides = [
        Side("ours", partial(score, by_headers)),
        Side("ours, decoding", partial(score, decoding)),
        Side("Data-Juicer", program.run),
    ]
    take_turns(sides, rounds, console)
    title = f"{len(pairs):,} pairs, {len(cores)} cores, medians of {rounds} rounds"
    console.print(turns_table(title, sides, len(pairs), "pairs"))
    version = juicer.ENVIRONMENT.version(peers)
    console.print(f"  Data-Juicer {version} wrote {', '.join(program.figures('whole'))}.", style="dim")
    console.print(juicer.STAND_INS, style="dim", soft_wrap=True)


def beside_curator(lines: list[str], peers: Path, scratch: Path, cores: Sequence[int], rounds: int) -> None:
    tables = {
        "few": caption_tables(lines[:FEW], scratch / "few-lines", 1),
        "whole": caption_tables(lines, scratch / "lines", SHARDS),
    }
    sizes = {"few": FEW, "whole": len(lines)}
    recipe = write_recipe(scratch / "captions.yaml", TEXT, STUDY)

    def select(name: str) -> Measured:
        command: list[str | Path] = ["select", tables[name], "--caption-col", "text", "--recipe", recipe]
        return danqing(command, scratch / "selected", cores, sizes[name])

    def curate(name: str) -> Measured:
        return curator.curate(peers, tables[name], scratch / "curated", cores)

    sides = [Side("ours", select), Side("NeMo Curator", curate, counts_cpu=False)]
    take_turns(sides, rounds, console)
    title = f"{len(lines):,} captions, {len(cores)} cores, medians of {rounds} rounds"
    console.print(turns_table(title, sides, len(lines), "captions"))
    console.print(f"  NeMo Curator {curator.ENVIRONMENT.version(peers)}", style="dim")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", metavar="INPUT", help="tars, folders, globs: pictures")
    parser.add_argument("--captions", type=Path, metavar="PARQUET", help="column 'text'; without: the demo's captions")
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--lines", type=int, default=60_000, help="captions for NeMo Curator")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--setup-peers", type=Path, metavar="DIR", help="make both peers' environments in this folder")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="where they are")
    parser.add_argument("--only", choices=("data-juicer", "nemo-curator"), help="one of the two benchmarks")
    options = parser.parse_args()
    if not options.setup_peers and not (options.data and options.peers):
        parser.error("--data and --peers are missing, or --setup-peers")
    return in_scratch("filters", partial(run, options))


def run(options: argparse.Namespace, scratch: Path) -> None:
    for environment in (juicer.ENVIRONMENT, curator.ENVIRONMENT) if options.setup_peers else ():
        environment.make(options.setup_peers)
        console.print(f"{environment.name} stands in {options.setup_peers}")
    if options.data:
        peers, cores = options.peers or options.setup_peers, first_cores(options.cores)
        console.print(f"{machine(PACKAGES)}; {len(cores)} cores", style="dim", soft_wrap=True)
        if options.only != "nemo-curator":
            pairs = collect(options.data, PICTURES, options.captions)
            pairs = repeated(pairs, options.captions, options.pairs)
            beside_juicer(pairs, peers, scratch, cores, options.rounds)
        if options.only != "data-juicer":
            lines = chinese_lines(options.captions, options.lines)
            beside_curator(lines, peers, scratch, cores, options.rounds)


if __name__ == "__main__":
    sys.exit(main())
