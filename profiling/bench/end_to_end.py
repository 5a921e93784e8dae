"""Compares whole runs of the engine with the plain script: same crawl, models, figures and cores.

    python -m danqing.profiling.bench.end_to_end --data 'photos/*.tar' --captions captions.parquet

shipped         `danqing curate`; the script computes every figure of every pair, one row at a time
gated           both drop a pair at the first criterion that it fails; the script's batches have 32 rows
everything      every figure of every pair; models, precision and batch size are the same
without-models  every figure that needs no network: text, headers, decoding, statistics; four times the pairs

Every run is a process of its own with a fresh output folder. Pictures are repeated with other captions.
"""

from __future__ import annotations

import os
import shutil
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from danqing.engine.core.columns import SHARD_COLUMNS
from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.criteria import Threshold
from danqing.engine.recipe.plan import decidable
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.stages import CATALOGUE
from danqing.engine.stages.network import ModelStage
from danqing.profiling.bench import harness
from danqing.profiling.bench.crawl import pictures, repeated, write_shards
from danqing.profiling.bench.plain import ROLES
from danqing.trt_models.card import load_card
from danqing.trt_models.run.session import CPU_BATCH_ROWS
from danqing.trt_models.store import onnx_path

PICTURES, SHARDS = 1000, 8
PACKAGES = ("onnxruntime", "nvidia-nvimgcodec-cu13", "pillow", "opencv-python-headless", "jieba", "opencc")


MODES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "shipped": ((), ("--everything", "--batch", "1")),
    "gated": ((), ("--batch", "32")),
    "everything": (("--score-everything",), ("--everything", "--batch", str(CPU_BATCH_ROWS))),
    "without-models": (("--score-everything",), ("--everything",)),
}
"""Name → options of `danqing curate`, and of the script."""


def measure(mode_name: str, options: Namespace, folder: Path) -> None:
    (ours, theirs), cores = MODES[mode_name], sorted(os.sched_getaffinity(0))[: options.cores]
    networks = mode_name != "without-models"
    count, samples = options.pairs * (1 if networks else 4), pictures(options.data, PICTURES)
    if count <= harness.STARTUP_ROWS:
        raise DanqingError(f"--pairs {options.pairs}: must be greater than {harness.STARTUP_ROWS}")
    pairs = repeated(samples, options.captions, count)
    start = write_shards(pairs[: harness.STARTUP_ROWS], folder / "start", len(cores))
    whole = write_shards(pairs, folder / "whole", SHARDS)
    models, recipe = load_recipe("embedded").models, "embedded"
    files = ["--models", *(str(onnx_path(load_card(models[role]))) for role in ROLES)]
    if not networks:
        recipe, files = str(write_recipe_without_networks(folder / "without-models.yaml")), []

    def side(name: str, *program: str) -> harness.Side:
        def run(output: Path, shards: list[Path]) -> harness.Run:
            shutil.rmtree(output, ignore_errors=True)
            command: list[str | Path] = [sys.executable, "-m", *program, *shards, "--recipe", recipe, "-o", output]
            return harness.run_program(command, cores, output)

        return partial(run, folder / name, whole), partial(run, folder / f"{name}-start", start)

    script = ("--processes", str(len(cores)), *theirs, *files)
    sides = {
        "engine": side("engine", "danqing.engine.cli.main", "curate", *ours),
        "plain": side("plain", "danqing.profiling.bench.plain", *script),
    }
    title = f"{mode_name}: {count:,} pairs, {len(cores)} cores"
    harness.print_table(title, harness.take_turns(sides, options.rounds), count, "plain")
    print_agreement(folder / "engine", folder / "plain")


def write_recipe_without_networks(path: Path) -> Path:
    """The default recipe without the criteria that a network decides."""
    recipe = load_recipe("embedded")
    stages = [stage for stage in CATALOGUE if not issubclass(stage, ModelStage)]
    kept = [c.name for c in decidable(recipe, stages, SHARD_COLUMNS).criteria if isinstance(c, Threshold)]
    whole: dict[str, Any] = recipe.to_dict()
    content = {"recipe": "without-models", "models": whole["models"]}
    content["criteria"] = {name: rule for name, rule in whole["criteria"].items() if name in kept}
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def print_agreement(engine: Path, plain: Path) -> None:
    """Prints in how many pairs each figure is the same to 0.1 % of its value or 0.0001, and the verdict."""
    ours, verdicts = (pd.read_parquet(engine / name).set_index("key") for name in ("scores", "verdicts"))
    theirs = pd.read_parquet(plain / "scores.parquet").set_index("key").reindex(ours.index)
    shares = {"verdict": (verdicts["dropped_by"].fillna("kept") == theirs["dropped_by"].fillna("kept")).mean()}
    for name in (name for name in map(str, ours) if name in theirs and pd.api.types.is_numeric_dtype(theirs[name])):
        both = ours[name].notna() & theirs[name].notna()
        shares[name] = np.isclose(ours[name][both].astype(float), theirs[name][both], rtol=1e-3, atol=1e-4).mean()
    agreement = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
    harness.console.print(f"the same on both sides: {agreement}", style="dim", soft_wrap=True)


def compare(options: Namespace, scratch: Path) -> None:
    for name in options.mode:
        (folder := (options.keep or scratch) / name).mkdir(parents=True)
        measure(name, options, folder)


def main() -> int:
    parser = harness.new_parser(__doc__, rounds=3)
    parser.add_argument("--data", nargs="+", required=True, metavar="INPUT", help="tars, folders, globs with pictures")
    parser.add_argument("--captions", type=Path, metavar="PARQUET", help="column 'text' (default: the demo's captions)")
    parser.add_argument("--pairs", type=int, default=720, help="default: 720")
    parser.add_argument("--cores", type=int, default=2, help="of both sides (default: 2)")
    parser.add_argument("--mode", choices=list(MODES), nargs="+", default=list(MODES), help="default: all")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep shards, outputs and logs there")
    return harness.main(compare, parser.parse_args(), PACKAGES)


if __name__ == "__main__":
    sys.exit(main())
