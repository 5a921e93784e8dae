"""Embeddings of pairs beside clip-retrieval: the same two towers, the same ONNX files, the same cores.

    python -m danqing.profiling.bench.embedding --setup-peers DIR  # once: clip-retrieval in an environment of its own
    python -m danqing.profiling.bench.embedding --data 'photos/*.tar' --captions captions.parquet --peers DIR

Theirs is its `clip_inference` on WebDataset shards, from reader to writer; only the networks and their preprocessing
are ours (`profiling.bench.peers.retrieval`). It runs with its defaults, four workers and batches of 256; try others by
`--workers` and `--batch`. Its package is installed without web server, index and CLIP, which spares it their start-up.

Ours is `danqing score` with one criterion, alignment, and no gates. Beside what the peer does it measures every caption
and makes it Simplified Chinese, keeps features for near-duplicates and compares the two embeddings; the peer stores
them. The text tower so sees other characters wherever a caption was not Simplified Chinese.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.sources import Sample
from danqing.profiling.bench import in_scratch, machine
from danqing.profiling.bench.crawl import collect, repeated, write_shards
from danqing.profiling.bench.environments import TORCH, Environment
from danqing.profiling.bench.filters import danqing, write_recipe
from danqing.profiling.bench.measured import FEW, Measured, Side, first_cores, measured, take_turns, turns_table
from danqing.trt_models.card import load_card
from danqing.trt_models.package_files import package_file
from danqing.trt_models.store import onnx_path

PACKAGES = ("onnxruntime", "numpy", "pillow", "nvidia-nvimgcodec-cu13", "sentencepiece")
# What its reader, writer and logger import, in the versions that it asks for; and our ONNX Runtime.
ENVIRONMENT = Environment(
    "clip-retrieval",
    (TORCH, "webdataset<0.3", "fsspec", "numpy<2", "pandas<3", "pyarrow<16", "pillow", "wandb",
     f"onnxruntime=={metadata.version('onnxruntime')}", "sentencepiece"),
    alone=("clip-retrieval",),
)  # fmt: skip
PROGRAM = Path(__file__).with_name("peers") / "retrieval.py"
SHARDS = 8
TOWERS = ("image_embedding", "text_embedding")

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def towers() -> dict[str, dict[str, Any]]:
    """The default recipe's two towers: their ONNX files, and what goes in."""
    models = load_recipe("embedded").models
    pictures, texts = (load_card(models[role]) for role in TOWERS)
    picture, tokens = pictures.image_input, texts.token_input
    assert picture and tokens
    return {
        "image": {"onnx": str(onnx_path(pictures)), **vars(picture)},
        "text": {
            "onnx": str(onnx_path(texts)), **vars(tokens), "pieces": str(package_file(tokens.package, tokens.file))
        },
    }  # fmt: skip


class Bench:
    """Runs either side over the first pairs, or all."""

    def __init__(self, pairs: list[Sample], peers: Path, scratch: Path, options: argparse.Namespace) -> None:
        self.rows = {"few": FEW, "whole": len(pairs)}
        self.shards = {  # each of the peer's workers wants one of its own
            "few": write_shards(pairs[:FEW], scratch / "few", options.workers),
            "whole": write_shards(pairs, scratch / "whole", max(SHARDS, options.workers)),
        }
        self.scratch, self.cores = scratch, first_cores(options.cores)
        self.settings = {"threads": len(self.cores), "workers": options.workers, "batch": options.batch}
        self.python = ENVIRONMENT.program(peers, "python")
        self.recipe = write_recipe(scratch / "alignment.yaml", ["alignment_distance"], [], TOWERS)
        self.towers = towers()

    def ours(self, name: str) -> Measured:
        command: list[str | Path] = ["score", *self.shards[name], "--recipe", self.recipe, "--score-everything"]
        return danqing(command, self.scratch / f"ours-{name}", self.cores, self.rows[name])

    def theirs(self, name: str) -> Measured:
        output, job = self.scratch / f"theirs-{name}", self.scratch / f"{name}.json"
        shutil.rmtree(output, ignore_errors=True)
        files = {"output": str(output), "shards": list(map(str, self.shards[name]))}
        job.write_text(json.dumps({**self.towers, **self.settings, **files}))
        took = measured([self.python, "-P", PROGRAM, job], self.cores, output, {"PYTHONPATH": ""})
        if len(distances(output)) != self.rows[name]:
            raise DanqingError(f"clip-retrieval wrote {len(distances(output))} of {self.rows[name]} pairs")
        return took

    def agreement(self) -> str:
        """How far the two sides' alignment distances lie apart."""
        found = pq.read_table(self.scratch / "ours-whole" / "scores", columns=["key", "alignment_distance"]).to_pydict()
        theirs = distances(self.scratch / "theirs-whole")
        own = dict(zip(found["key"], found["alignment_distance"], strict=True))
        apart = np.array([abs(own[key] - distance) for key, distance in theirs.items()])
        near = f"median {np.median(apart):.1e}, 99 % below {np.quantile(apart, 0.99):.1e}, largest {apart.max():.1e}"
        return f"alignment distances of the two sides differ by {near}"


def distances(output: Path) -> dict[str, float]:
    """Key → L2 distance of the two embeddings that clip-retrieval wrote."""
    pictures, texts = (
        np.load(output / f"{side}_emb" / f"{side}_emb_0.npy").astype(np.float32) for side in ("img", "text")
    )
    keys = pq.read_table(output / "metadata" / "metadata_0.parquet")["image_path"].to_pylist()
    return dict(zip(keys, np.linalg.norm(pictures - texts, axis=1).tolist(), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", metavar="INPUT", help="tars, folders, globs: JPEG pictures")
    parser.add_argument("--captions", type=Path, metavar="PARQUET", help="column 'text'; without: the demo's captions")
    parser.add_argument("--pairs", type=int, default=960)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--workers", type=int, default=4, help="clip-retrieval's processes that read and prepare")
    parser.add_argument("--batch", type=int, default=256, help="clip-retrieval's pairs at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--setup-peers", type=Path, metavar="DIR", help="make clip-retrieval's environment in this folder"
    )
    parser.add_argument("--peers", type=Path, metavar="DIR", help="where it is")
    options = parser.parse_args()
    if not options.setup_peers and not (options.data and options.peers):
        parser.error("--data and --peers are missing, or --setup-peers")
    return in_scratch("embedding", partial(run, options))


def run(options: argparse.Namespace, scratch: Path) -> None:
    if options.setup_peers:
        ENVIRONMENT.make(options.setup_peers)
        console.print(f"{ENVIRONMENT.name} stands in {options.setup_peers}")
    if options.data:
        compare(options, options.peers or options.setup_peers, scratch)


def compare(options: argparse.Namespace, peers: Path, scratch: Path) -> None:
    pictures = [
        pair for pair in collect(options.data, options.pairs, options.captions) if pair.image_extension == "jpg"
    ]
    pairs = repeated(pictures, options.captions, options.pairs)
    if len(pairs) <= FEW:
        raise DanqingError(f"{len(pairs)} pairs with JPEG pictures (.jpg); the benchmark needs more than {FEW}")
    bench = Bench(pairs, peers, scratch, options)
    version = f"clip-retrieval {ENVIRONMENT.version(peers)}"
    console.print(f"{machine(PACKAGES)}, {version}; {options.cores} cores", style="dim", soft_wrap=True)
    sides = [Side("ours", bench.ours), Side("clip-retrieval", bench.theirs)]
    take_turns(sides, options.rounds, console)
    title = f"{len(pairs):,} pairs, {options.cores} cores, medians of {options.rounds} rounds"
    console.print(turns_table(title, sides, len(pairs), "pairs"))
    console.print(f"  {bench.agreement()}")


if __name__ == "__main__":
    sys.exit(main())
