"""The engine beside the plain script: same crawl, same models, same figures, same cores, in turn.

    python -m danqing.profiling.bench.end_to_end --data 'photos/*.tar' --captions captions.parquet

Four comparisons, of which none alone would be fair (`--mode`, default: all):

shipped         `danqing curate` as it comes, beside the script as one would first write it: a process a core, a row at
                a time, every figure of every pair.
gated           both drop a pair at the first criterion it fails, and the script's models see 32 rows at once.
everything      every figure of every pair on both sides; models, precision and batch size are the same.
without-models  every figure that needs no network: text, headers, decoding, statistics.

Every run is a process of its own, held to --cores cores, with a fresh output folder. Pictures come again, with other
captions, until there are enough.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.criteria import Criterion
from danqing.engine.recipe.plan import decidable
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.score.loop import GIVEN
from danqing.engine.stages import CATALOGUE
from danqing.engine.stages.network import ModelStage
from danqing.profiling.bench import machine
from danqing.profiling.bench.crawl import collect, repeated, write_shards
from danqing.profiling.bench.measured import FEW, Measured, Side, first_cores, measured, take_turns, turns_table
from danqing.trt_models.card import load_card
from danqing.trt_models.run.session import BATCH
from danqing.trt_models.store import onnx_path

PICTURES, SHARDS = 1000, 8
PACKAGES = ("onnxruntime", "numpy", "nvidia-nvimgcodec-cu13", "numba", "pillow",
            "opencv-python-headless", "jieba", "opencc", "pyarrow")  # fmt: skip
IDENTITY = ("shard", "row", "key", "uid", "url", "caption", "error", "feature_row", "gated_at")

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


class Mode(NamedTuple):
    """What is compared, and either side's options. `networks`: False leaves out what needs one; `times`: so many times
    the pairs, where they are quickly done."""

    says: str
    engine: tuple[str, ...]
    plain: tuple[str, ...]
    networks: bool = True
    times: int = 1


MODES = {
    "shipped": Mode("as shipped, beside every figure and a row at a time", (), ("--everything", "--batch", "1")),
    "gated": Mode("both gated", (), ("--batch", "32")),
    "everything": Mode(
        "every figure of every pair, same batches", ("--score-everything",), ("--everything", "--batch", str(BATCH))
    ),
    "without-models": Mode("every figure but the networks'", ("--score-everything",), ("--everything",), False, 4),
}


class Bench:
    """Runs either side over the first pairs, or all."""

    def __init__(self, folder: Path, cores: int, mode: Mode, shards: dict[str, list[Path]]) -> None:
        self.folder, self.cores, self.mode, self.shards = folder, first_cores(cores), mode, shards
        models, self.recipe = load_recipe("embedded").models, "embedded"
        roles = ("image_embedding", "image_safety", "text_embedding")
        self.models = ["--models", *(str(onnx_path(load_card(models[role]))) for role in roles)]
        if not mode.networks:
            self.recipe, self.models = str(write_recipe_without_networks(folder / "without-models.yaml")), []
        self._runs = 0

    def engine(self, name: str) -> Measured:
        return self._run(["danqing.engine.cli.main", "curate", *self.shards[name], *self.mode.engine])

    def plain(self, name: str) -> Measured:
        processes = ["--processes", str(len(self.cores))]
        return self._run(
            ["danqing.profiling.bench.plain", *self.shards[name], *self.models, *processes, *self.mode.plain]
        )

    def _run(self, program: Sequence[str | Path]) -> Measured:
        self._runs += 1
        output = self.folder / f"run{self._runs:03d}"
        return measured([sys.executable, "-m", *program, "--recipe", self.recipe, "-o", output], self.cores, output)


def write_recipe_without_networks(path: Path) -> Path:
    """The default recipe, less the criteria that a network decides."""
    recipe = load_recipe("embedded")
    stages = [stage for stage in CATALOGUE if not issubclass(stage, ModelStage)]
    kept = [c.name for c in decidable(recipe, stages, GIVEN).criteria if isinstance(c, Criterion)]
    whole: dict[str, Any] = recipe.to_dict()
    content = {"recipe": "without-models", "models": whole["models"]}
    content["criteria"] = {name: rule for name, rule in whole["criteria"].items() if name in kept}
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


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


# ── the benchmark ──


def compare(bench: Bench, pairs: int, rounds: int) -> None:
    """Both sides in turn; prints the ratios, the parts and the agreement."""
    sides = [Side("engine", bench.engine), Side("plain", bench.plain)]
    take_turns(sides, rounds, console)
    title = f"{bench.mode.says}: {pairs} pairs, {len(bench.cores)} cores, medians of {rounds} rounds"
    console.print(turns_table(title, sides, pairs, "pairs"))
    peaks = (f"{side.name} {max(whole.peak_mib for _, whole in side.runs):,.0f}" for side in sides)
    console.print(f"peak memory, MiB (of the largest process): {', '.join(peaks)}")
    whole = {side.name: [run for _, run in side.runs] for side in sides}
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="INPUT", help="tars, folders, globs")
    parser.add_argument("--captions", type=Path, metavar="PARQUET", help="column 'text'; without: the demo's captions")
    parser.add_argument("--mode", choices=list(MODES), nargs="+", default=list(MODES))
    parser.add_argument("--pairs", type=int, default=720)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep crawl, runs and logs in this new folder")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="danqing-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        pictures = collect(options.data, PICTURES, options.captions)
        if not pictures or options.pairs <= FEW:
            raise DanqingError(f"the benchmark needs pictures, and more than {FEW} pairs")
        console.print(f"{machine(PACKAGES)}; {options.cores} cores", style="dim", soft_wrap=True)
        for name in options.mode:
            mode, place = MODES[name], folder / name
            place.mkdir()
            pairs = repeated(pictures, options.captions, options.pairs * mode.times)
            shards = {
                "few": write_shards(pairs[:FEW], place / "few", options.cores),
                "whole": write_shards(pairs, place / "whole", SHARDS),
            }
            compare(Bench(place, options.cores, mode, shards), len(pairs), options.rounds)
    except DanqingError as problem:
        print(f"end_to_end: {problem}", file=sys.stderr)
        return 2
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
