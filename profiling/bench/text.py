"""Compares segmentation with jieba and jieba-rs, and the text stage with the plain script, one core each; and SELECT
from Parquet to Parquet, on one and two cores, with an earlier version and with the usual libraries.

    pip install rjieba
    python -m danqing.profiling.bench.text --captions captions.parquet
    python -m danqing.profiling.bench.text --captions captions.parquet --only select --peer CHECKOUT

Every side runs in a child process that opens what it needs, processes `WARM_UP` other captions, and then times the
rest; a new child every round. `ours, in memory` gives the cuts as marks in an array, which is what the stages use.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.strings import Strings
from danqing.engine.core.text_column import TextColumn
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.stages.base import Context
from danqing.engine.stages.dictionary import open_dictionary
from danqing.engine.stages.text import Caption, Refine
from danqing.kernels.text.captions import allocate_scratch, segment_rows, tokens
from danqing.profiling.bench import harness
from danqing.profiling.bench.crawl import chinese_lines
from danqing.profiling.bench.plain import Texts
from danqing.trt_models.card import load_card
from danqing.trt_models.model_set import ModelSet

WARM_UP, BATCH = 1000, 4096
SELECT_ONCE = Path(__file__).resolve().with_name("select_once.py")

Work = Callable[[list[str]], list[list[str]] | None]


def our_lists(hmm: bool, device: Device) -> Work:
    words = open_dictionary()

    def cut(captions: list[str]) -> list[list[str]]:
        parts = (Strings.of(captions[start : start + BATCH]) for start in range(0, len(captions), BATCH))
        return [line for part in parts for line in tokens(device, part, words, hmm)]

    return cut


def our_cuts(hmm: bool, device: Device) -> Work:
    words = open_dictionary()

    def cut(captions: list[str]) -> None:
        for start in range(0, len(captions), BATCH):
            part = Strings.of(captions[start : start + BATCH])
            counts = np.empty(part.rows, np.int32)
            segment_rows.launch(device, part.rows, part, words, hmm, allocate_scratch(device, part), counts)

    return cut


def jieba_rs(hmm: bool, device: Device) -> Work:
    import rjieba  # type: ignore[import-not-found, unused-ignore]

    cut = rjieba.cut
    return lambda captions: [cut(caption, hmm) for caption in captions]


def jieba_lcut(hmm: bool, device: Device) -> Work:
    import jieba

    jieba.setLogLevel("WARNING")
    jieba.initialize()
    return lambda captions: [jieba.lcut(caption, HMM=hmm) for caption in captions]


def our_stage(device: Device) -> Work:
    wanted = frozenset(name for stage in (Caption, Refine) for name, column in stage.produces.items() if column.type)
    context = Context(device, ModelSet(load_recipe("embedded").models), wanted)
    stages = [Caption(context), Refine(context)]

    def run(captions: list[str]) -> None:
        for start in range(0, len(captions), BATCH):
            part = captions[start : start + BATCH]
            batch = Batch({"row": np.arange(start, start + len(part)), "caption": TextColumn.of(part)})
            for stage in stages:
                stage(batch)

    return run


def plain_stage(device: Device) -> Work:
    """The caption part of the plain script, without the encoder's tokens."""
    recipe = load_recipe("embedded")
    texts = Texts(recipe, load_card(recipe.models["text_embedding"]))
    texts.pieces = cast(Any, SimpleNamespace(encode=lambda text: []))

    def run(captions: list[str]) -> None:
        for caption in captions:
            texts.raw(pair := {"caption": caption, "url": "", "image": b""})
            texts.refined(pair)

    return run


LISTS, TWO_CORES = "ours, as lists", "ours, two cores"
SEGMENTERS: dict[str, dict[str, Callable[[Device], Work]]] = {
    f"segmentation, HMM {state}": {
        "ours, in memory": partial(our_cuts, hmm),
        LISTS: partial(our_lists, hmm),
        "rjieba.cut": partial(jieba_rs, hmm),
        "jieba.lcut": partial(jieba_lcut, hmm),
    }
    for state, hmm in (("off", False), ("on", True))
}
SIDES = SEGMENTERS | {"text stage": {"ours": our_stage, TWO_CORES: our_stage, "plain script": plain_stage}}
"""Title of a table → its sides; the first is the base."""


def time_side(title: str, name: str, folder: Path) -> None:
    """In the child: warms up, times one run, and keeps its result."""
    captions = pickle.loads((folder / "captions").read_bytes())
    results: list[Any] = []
    with open_device(threads=len(os.sched_getaffinity(0))) as device:
        work = SIDES[title][name](device)
        work(captions[:WARM_UP])
        harness.time_and_report(lambda: results.append(work(captions[WARM_UP:])))
    (folder / name).write_bytes(pickle.dumps(results[0]))


def compare(options: Namespace, folder: Path) -> None:
    captions = chinese_lines(options.captions, options.rows + WARM_UP, words=None)
    (folder / "captions").write_bytes(pickle.dumps(captions))
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    for title, works in SIDES.items():
        sides: dict[str, harness.Side] = {}
        for name in works:
            held = cores[: 2 if name == TWO_CORES else 1]
            sides[name] = partial(harness.time_child, "text", [title, name, folder], held, folder / "child"), None
        runs = harness.take_turns(sides, options.rounds)
        cuts = {name: pickle.loads((folder / name).read_bytes()) for name in works}
        notes = {
            name: f"{np.mean([a == b for a, b in zip(cuts[LISTS], theirs, strict=True)]):.2%} cut as ours"
            for name, theirs in cuts.items()
            if LISTS in cuts and theirs
        }
        harness.print_table(f"{title}: {options.rows:,} captions", runs, options.rows, next(iter(works)), notes)


def compare_select(options: Namespace, folder: Path) -> None:
    """Prints the table of SELECT: whole processes, less the time of one over `harness.STARTUP_ROWS` rows."""
    lines = chinese_lines(options.captions, options.rows, words=None)
    names = {rows: folder / f"urls-{rows}.parquet" for rows in (options.rows, harness.STARTUP_ROWS)}
    for rows, path in names.items():
        urls = [f"https://img{row % 997}.example.com/photos/{row}.jpg" for row in range(rows)]
        pq.write_table(pa.table({"url": urls, "caption": lines[:rows]}), path)
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    package = SELECT_ONCE.parents[2]
    versions = {"ours": package, **({"earlier version": options.peer} if options.peer else {})}
    sides: dict[str, harness.Side] = {}
    for version, where in versions.items():
        for count in (1, 2):
            name = f"{version}, {count} core{'s' if count > 1 else ''}"
            sides[name] = _runs("engine", where, names, cores[:count], folder / name.replace("/", "-"))
    sides["libraries, 1 core"] = _runs("libraries", package, names, cores[:1], folder / "libraries")
    runs = harness.take_turns(sides, options.rounds)
    harness.print_table(f"select: {options.rows:,} rows, Parquet to Parquet", runs, options.rows, next(iter(sides)))


def _runs(how: str, where: Path, names: dict[int, Path], cores: list[int], output: Path) -> harness.Side:
    """The run over all rows and the run over the first ones."""

    def run(path: Path) -> harness.Run:
        shutil.rmtree(output, ignore_errors=True)
        program = ["env", f"PYTHONPATH={where}", sys.executable, str(SELECT_ONCE)]
        return harness.run_program([*program, how, str(path), str(output), str(len(cores))], cores, output)

    all_rows, first_rows = names.values()
    return partial(run, all_rows), partial(run, first_rows)


def main() -> int:
    parser = harness.new_parser(__doc__, rounds=3)
    parser.add_argument("--captions", type=Path, metavar="PARQUET", help="column 'text' (default: the demo's captions)")
    parser.add_argument("--rows", type=int, default=50_000, help="captions (default: 50000)")
    parser.add_argument("--only", choices=("text", "select"), help="only these tables")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="checkout of an earlier version, for SELECT")
    options = parser.parse_args()
    if options.one:
        time_side(options.one[0], options.one[1], Path(options.one[2]))
        return 0

    def run(options: Namespace, folder: Path) -> None:
        if options.only != "select":
            compare(options, folder)
        if options.only != "text":
            compare_select(options, folder)

    return harness.main(run, options, ("jieba", "rjieba", "fasttext-predict", "opencc"))


if __name__ == "__main__":
    sys.exit(main())
