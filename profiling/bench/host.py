"""Measures how long Python code holds the interpreter's lock, per pair and stage. It limits the rate of one process.

    python -m danqing.profiling.bench.host --data 'photos/*.tar' --json host.json

SCORE runs over the data in one thread, one stage after the other, every pair through every stage. It measures CPU time
of the process, which other programs on the machine disturb least, and takes the least of the rounds. Each interval is
booked on the code that runs: a stage, the index of a tar, the ledger. Calls that release the lock (reading and writing
files, xxHash, kernels, SentencePiece) are booked separately. The rest of a stage is Python code and calls that hold the
lock or are too short to matter: OpenCC, fastText, Pillow. The time of the measurement itself is subtracted.

Codec, resizer and networks are stand-ins: one small picture for every file, and a network's output for one row for
every row. Batches are as large as on a GPU. The sum lacks the Python code that a GPU needs for every picture, around
nvImageCodec, DALI and CuPy.

The sum includes the costs per shard (opening it, writing and committing its files), so shards of 10,000 pairs, as
img2dataset writes them, give lower figures than small ones.

The peer is the same code with every tar indexed by `tarfile` and every header read by Pillow, alternating in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import xxhash
from rich import box
from rich.console import Console
from rich.table import Table
from sentencepiece import SentencePieceProcessor

import danqing.engine.score.loop
import danqing.engine.sources.tar
import danqing.engine.stages.decode
import danqing.engine.stages.embed
import danqing.engine.stages.header
import danqing.engine.stages.network
import danqing.engine.stages.resize
from danqing.engine.core.columns import FEATURES, SHARD_COLUMNS
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.progress import Silent
from danqing.engine.core.spans import Spans
from danqing.engine.demo.crawl import build_crawl
from danqing.engine.recipe.plan import make_plan
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.score.ledger import Ledger
from danqing.engine.score.loop import score
from danqing.engine.sources import Shard, find_shards
from danqing.engine.stages import CATALOGUE
from danqing.kernels.portable import Kernel
from danqing.profiling.bench import in_scratch, machine
from danqing.trt_models.card import ImageInput
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.run.session import GPU_BATCH, OnnxSession

B = TypeVar("B", bound=Any)

PACKAGES = ("numpy", "pyarrow", "pillow", "opencc", "xxhash")
INDEX, COLUMNS, LEDGER, FILES, BETWEEN = "tar index", "rows to columns", "ledger", "shard files", "packing and gates"

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


class Meter:
    """CPU seconds of this process, each interval booked on the innermost name only.

    `held`: seconds of Python code, by name. `released`: seconds of calls that release the lock, by the name of their
    caller. Only one thread may run at a time.
    """

    def __init__(self) -> None:
        self._seconds_a_change = 0.0
        self.start()
        nothing, calls = self.releasing(lambda: None), 2000
        for _ in range(calls):
            nothing()
        self._seconds_a_change = (time.process_time() - self._started) / (2 * calls)
        self.start()

    def start(self) -> None:
        """Discards all booked seconds."""
        self.held: dict[str, float] = defaultdict(float)
        self.released: dict[str, float] = defaultdict(float)
        self._names = [BETWEEN]
        self._lock_free = False
        self._started = self._since = time.process_time()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Books the `with` block on `name`."""
        self._book()
        self._names.append(name)
        try:
            yield
        finally:
            self._book()
            self._names.pop()

    def named(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps the function so that its time is booked on `name`."""

        def booked(*arguments: Any, **options: Any) -> Any:
            with self(name):
                return function(*arguments, **options)

        return booked

    def releasing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps the function so that its time is booked as released."""

        def booked(*arguments: Any, **options: Any) -> Any:
            if self._lock_free:  # called by another such function
                return function(*arguments, **options)
            self._book()
            self._lock_free = True
            try:
                return function(*arguments, **options)
            finally:
                self._book()
                self._lock_free = False

        return booked

    def _book(self) -> None:
        now = time.process_time()
        (self.released if self._lock_free else self.held)[self._names[-1]] += now - self._since - self._seconds_a_change
        self._since = now


class MeteredSpans(Spans):
    """Spans that book each stage on a meter; they start it when the stages are open."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def open(self, names: Iterable[str]) -> None:
        super().open(names)
        self._meter.start()

    @contextmanager
    def __call__(self, name: str, rows: int) -> Iterator[None]:
        with self._meter(name), super().__call__(name, rows):
            yield

    def timed(self, name: str, batches: Iterable[B], size: Callable[[B], int] | None = None) -> Iterator[B]:
        stream = super().timed(name, batches, size)
        while True:
            with self._meter(name):
                batch = next(stream, None)
            if batch is None:
                return
            yield batch


PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


class OnePicture:
    """Stand-in for the codec and the resizer: one small picture for every file, zeros for every input."""

    def __init__(self, inputs: Sequence[ImageInput], device: Device, resizer: str = "auto") -> None:
        self._inputs = inputs

    @staticmethod
    def decode(files: Sequence[bytes]) -> list[np.ndarray]:
        return [PICTURE] * len(files)

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.zeros((len(pictures), *PICTURE.shape), np.uint8) for _ in self._inputs]


class OneRow:
    """Stand-in for a network: returns its output for one row of zeros, for every row.

    Features are float16, as they are stored, so that NumPy's cast, which releases the lock, is not counted as held.
    """

    batch = GPU_BATCH

    def __init__(self, network: OnnxSession) -> None:
        self._network = network
        self._found: dict[str, np.ndarray] = {}

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        if not self._found:
            self._found = self._network.run(**self._network.zeros(1))
            if FEATURES in self._found:
                self._found[FEATURES] = self._found[FEATURES].astype(np.float16)
        rows = len(next(iter(inputs.values())))
        return {name: np.repeat(output[:1], rows, axis=0) for name, output in self._found.items()}


def measure(
    shards: Sequence[Shard], recipe: Recipe, models: ModelSet, device: Device, folder: Path, old_way: bool
) -> Meter:
    """Scores the shards into the folder; returns the meter of the run.

    Args:
        old_way: index every tar with `tarfile` and read every header with Pillow.
    """
    plan, meter, settings = make_plan(recipe, CATALOGUE, SHARD_COLUMNS), Meter(), Settings()
    context = settings.context(device, models, plan.wanted)
    run = Run.create_or_resume(folder, list(shards), recipe, settings.layout, {})
    with ExitStack() as patches:
        for owner, name in (
            (os, "pread"), (os, "fsync"), (xxhash, "xxh128"), (Kernel, "launch"), (SentencePieceProcessor, "encode"),
            (OneRow, "run"), (danqing.engine.stages.embed, "has_direction"), (pq, "write_table"), (np, "save"),
        ):  # fmt: skip
            patches.enter_context(patch.object(owner, name, meter.releasing(getattr(owner, name))))
        for owner, name, booked in (
            (danqing.engine.score.loop, "open_shard", INDEX), (danqing.engine.score.loop, "_batch", COLUMNS),
            (Ledger, "enter", LEDGER), (Ledger, "_commit", FILES), (ModelSet, "reopen", "end"),
        ):  # fmt: skip
            patches.enter_context(patch.object(owner, name, meter.named(booked, getattr(owner, name))))
        if old_way:
            for module, name in (
                (danqing.engine.sources.tar, "walk_plain"),
                (danqing.engine.stages.header, "read_plain_header"),
            ):
                patches.enter_context(patch.object(module, name, lambda given: None))
        score(run, plan, context, Silent(), gated=False, room=0, spans=MeteredSpans(meter))
    del meter.held["end"]
    return meter


def microseconds(meters: Sequence[dict[str, float]], pairs: int) -> dict[str, float]:
    """Microseconds a pair by name, the least of the rounds: other programs on the machine only add to it."""
    return {name: 1e6 / pairs * min(meter.get(name, 0.0) for meter in meters) for name in meters[0]}


def report(new: Sequence[Meter], old: Sequence[Meter], pairs: int) -> dict[str, Any]:
    """The results as `--json` writes them: microseconds a pair, and the highest rate in pairs a second."""
    held, peer = (microseconds([meter.held for meter in meters], pairs) for meters in (new, old))
    released = microseconds([meter.released for meter in new], pairs)
    return {
        "pairs": pairs,
        "held_us": held,
        "released_us": released,
        "peer_held_us": peer,
        "sum_us": sum(held.values()),
        "peer_sum_us": sum(peer.values()),
        "most_pairs_a_second": 1e6 / sum(held.values()),
        "peer_most_pairs_a_second": 1e6 / sum(peer.values()),
    }


def print_report(found: dict[str, Any]) -> None:
    title = f"{found['pairs']:,} pairs, µs a pair"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("")
    for name in ("lock held", "peer: tarfile, Pillow", "CPU, lock released"):
        table.add_column(name, justify="right")
    for stage, value in found["held_us"].items():
        cells = value, found["peer_held_us"][stage], found["released_us"].get(stage, 0.0)
        table.add_row(stage, *(f"{cell:.1f}" for cell in cells))
    table.add_section()
    table.add_row("sum", f"{found['sum_us']:.1f}", f"{found['peer_sum_us']:.1f}")
    table.add_row("pairs/s at most", *(f"{found[n]:,.0f}" for n in ("most_pairs_a_second", "peer_most_pairs_a_second")))
    console.print(table)


def run(options: argparse.Namespace, scratch: Path) -> None:
    console.print(machine(PACKAGES), style="dim", soft_wrap=True)
    shards = find_shards(options.data or map(str, build_crawl(scratch / "crawl")))
    recipe = load_recipe(options.recipe)
    models, real = ModelSet(recipe.models), ModelSet.session
    sessions: dict[str, OneRow] = {}

    def one_row(self: ModelSet, role: str, device: Device) -> OneRow:
        if role not in sessions:
            network = real(self, role, device)
            assert isinstance(network, OnnxSession)
            sessions[role] = OneRow(network)
        return sessions[role]

    meters: dict[bool, list[Meter]] = {False: [], True: []}
    with ExitStack() as stand_ins, open_device(threads=1) as device:
        for owner, name, other in (
            (ModelSet, "session", one_row),
            (danqing.engine.stages.network, "rows_at_once", lambda device, session: session.batch),
            (danqing.engine.stages.decode, "open_decoder", partial(OnePicture, ())),
            (danqing.engine.stages.decode, "_decode_slowly", lambda data: PICTURE),
            (danqing.engine.stages.resize, "open_resizer", OnePicture),
        ):
            stand_ins.enter_context(patch.object(owner, name, other))
        for number in range(1 + options.rounds):
            for old_way in (False, True) if number % 2 else (True, False):
                folder = scratch / f"{number}-{'old' if old_way else 'new'}"
                meter = measure(shards, recipe, models, device, folder, old_way)
                if number:  # the first round compiles kernels and runs the networks
                    meters[old_way].append(meter)
    pairs = sum(pq.read_metadata(path).num_rows for path in (folder / "scores").iterdir())
    found = report(meters[False], meters[True], pairs)
    print_report(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", metavar="INPUT", help="tars, tables, folders, globs (default: the demo's)")
    parser.add_argument("--recipe", default="embedded", metavar="NAME|FILE", help="default: embedded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    options = parser.parse_args(arguments)
    return in_scratch("host", partial(run, options))


if __name__ == "__main__":
    sys.exit(main())
