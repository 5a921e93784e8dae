"""Measures how long Python code holds the interpreter's lock, per pair and stage. It limits the rate of one process.

    python -m danqing.profiling.bench.host --data 'photos/*.tar' --json host.json

SCORE runs in one thread, every pair through every stage. CPU time of the process, the least of the rounds, is booked on
the code that runs, and separately for calls that release the lock: files, xxHash, kernels, SentencePiece. The rest is
Python code and calls that hold the lock or are too short to matter, such as Pillow.

Stand-ins replace codec, resizer and networks; batches are as large as on a GPU. The sum lacks the Python code around
nvImageCodec, DALI and CuPy. It includes the costs per shard: small shards give higher figures than 10,000 pairs. The
peer is the same code, but `tarfile` indexes every tar and Pillow reads every header.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
from rich import box
from rich.table import Table

from danqing.engine.core.columns import FEATURES, SHARD_COLUMNS
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.progress import Silent
from danqing.engine.core.spans import Spans
from danqing.engine.demo.crawl import build_crawl
from danqing.engine.recipe.plan import make_plan
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.score.loop import score
from danqing.engine.sources import Shard, find_shards
from danqing.engine.stages.patterns import stages_for
from danqing.profiling.bench import harness
from danqing.trt_models.card import ImageInput
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.run.session import GPU_BATCH_ROWS, OnnxSession

BETWEEN, END = "packing and gates", "end"
BOOKED = {
    "danqing.engine.score.loop:open_shard": "tar index",
    "danqing.engine.score.loop:_batch": "rows to columns",
    "danqing.engine.score.ledger:Ledger.enter": "ledger",
    "danqing.engine.score.ledger:Ledger._commit": "shard files",
    "danqing.trt_models.model_set:ModelSet.reopen": END,
}
"""Function → the name that its time is booked on; `END` is not reported."""
LOCK_RELEASING = (
    "os:pread", "os:fsync", "xxhash:xxh128", "danqing.kernels.portable:Kernel.launch",
    "sentencepiece:SentencePieceProcessor.encode", "danqing.engine.stages.embed:has_direction",
    "pyarrow.parquet:write_table", "numpy:save",
)  # fmt: skip
FAST_PATHS = ("danqing.engine.sources.tar:walk_plain", "danqing.engine.stages.header:read_plain_header")
"""Our readers of a tar's index and of a JPEG header; after None, `tarfile` and Pillow read them."""


class Meter:
    """CPU seconds of this process, each interval booked on the innermost name only. For one thread at a time.

    `held`: seconds of Python code, by name. `released`: seconds of calls that release the lock, by the name of their
    caller. The time of the measurement itself is subtracted.
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

    def timed(self, name: str, batches: Iterable[Any], size: Callable[[Any], int] | None = None) -> Iterator[Any]:
        stream = super().timed(name, batches, size)
        while True:
            with self._meter(name):
                batch = next(stream, None)
            if batch is None:
                return
            yield batch


PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


class OnePicture:
    """Replaces the codec and the resizer: one small picture for every file, zeros for every input."""

    def __init__(self, inputs: Sequence[ImageInput], device: Device, resizer: str = "auto") -> None:
        self._inputs = inputs

    @staticmethod
    def decode(files: Sequence[bytes]) -> list[np.ndarray]:
        return [PICTURE] * len(files)

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.zeros((len(pictures), *PICTURE.shape), np.uint8) for _ in self._inputs]


class OneRow:
    """Replaces a network: returns its output for one row of zeros, for every row.

    Features are float16, as they are stored, so that NumPy's cast, which releases the lock, is not counted as held.
    """

    batch = GPU_BATCH_ROWS

    def __init__(self, network: OnnxSession) -> None:
        self._found = network.run(**network.zeros(1))
        if FEATURES in self._found:
            self._found[FEATURES] = self._found[FEATURES].astype(np.float16)

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        rows = len(next(iter(inputs.values())))
        return {name: np.repeat(output[:1], rows, axis=0) for name, output in self._found.items()}


def patched(patches: ExitStack, target: str, change: Callable[[Any], Any]) -> None:
    """Replaces `module:name` by what `change` makes of it, until the stack is closed."""
    module, _, name = target.partition(":")
    *owners, attribute = name.split(".")
    owner = resolve_name(f"{module}:{'.'.join(owners)}")
    patches.enter_context(patch.object(owner, attribute, change(getattr(owner, attribute))))


def measure(
    shards: Sequence[Shard], recipe: Recipe, models: ModelSet, device: Device, folder: Path, slow: bool
) -> Meter:
    """Scores the shards into the folder; `slow` without the fast paths. Returns the meter of the run."""
    plan, meter, settings = make_plan(recipe, stages_for(recipe), SHARD_COLUMNS), Meter(), Settings()
    context = settings.context(device, models, plan.wanted)
    run = Run.create_or_resume(folder, list(shards), recipe, settings.layout, {})
    with ExitStack() as patches:
        patches.enter_context(patch.object(OneRow, "run", meter.releasing(OneRow.run)))
        for target in LOCK_RELEASING:
            patched(patches, target, meter.releasing)
        for target, name in BOOKED.items():
            patched(patches, target, partial(meter.named, name))
        for target in FAST_PATHS if slow else ():
            patched(patches, target, lambda _: lambda given: None)
        score(run, plan, context, Silent(), gated=False, room=0, spans=MeteredSpans(meter))
    del meter.held[END]
    return meter


def figures(fast: Sequence[Meter], slow: Sequence[Meter], pairs: int) -> dict[str, Any]:
    """Microseconds per pair and name, the least of the rounds, and the highest rate in pairs per second."""

    def microseconds(meters: Sequence[dict[str, float]]) -> dict[str, float]:
        return {name: 1e6 / pairs * min(meter.get(name, 0.0) for meter in meters) for name in meters[0]}

    held, peer = (microseconds([meter.held for meter in meters]) for meters in (fast, slow))
    ours, theirs = sum(held.values()), sum(peer.values())
    return {
        "pairs": pairs, "held_us": held, "peer_held_us": peer, "sum_us": ours, "peer_sum_us": theirs,
        "released_us": microseconds([meter.released for meter in fast]),
        "most_pairs_a_second": 1e6 / ours, "peer_most_pairs_a_second": 1e6 / theirs,
    }  # fmt: skip


def print_figures(found: dict[str, Any]) -> None:
    table = Table("", box=box.SIMPLE_HEAD, title=f"{found['pairs']:,} pairs, µs a pair", title_justify="left")
    for name in ("lock held", "peer: tarfile, Pillow", "CPU, lock released"):
        table.add_column(name, justify="right")
    for stage, value in found["held_us"].items():
        cells = value, found["peer_held_us"][stage], found["released_us"].get(stage, 0.0)
        table.add_row(stage, *(f"{cell:.1f}" for cell in cells))
    table.add_section()
    table.add_row("sum", f"{found['sum_us']:.1f}", f"{found['peer_sum_us']:.1f}")
    table.add_row("pairs/s at most", *(f"{found[n]:,.0f}" for n in ("most_pairs_a_second", "peer_most_pairs_a_second")))
    harness.console.print(table)


def compare(options: Namespace, scratch: Path) -> None:
    shards = find_shards(options.data or map(str, build_crawl(scratch / "crawl")))
    recipe = load_recipe("embedded")
    models, real = ModelSet(recipe.models), ModelSet.session
    sessions: dict[str, OneRow] = {}

    def one_row(self: ModelSet, role: str, device: Device) -> Any:
        if role not in sessions:
            network = real(self, role, device)
            assert isinstance(network, OnnxSession)
            sessions[role] = OneRow(network)
        return sessions[role]

    meters: dict[bool, list[Meter]] = {False: [], True: []}
    stand_ins: dict[str, Callable[..., Any]] = {
        "danqing.trt_models.model_set:ModelSet.session": one_row,
        "danqing.engine.stages.network:rows_at_once": lambda device, session: session.batch,
        "danqing.engine.stages.decode:open_decoder": partial(OnePicture, ()),
        "danqing.engine.stages.decode:decode_with_pillow": lambda data, max_pixels: PICTURE,
        "danqing.engine.stages.decode:_has_size": lambda picture, size: True,
        "danqing.engine.stages.resize:open_resizer": OnePicture,
    }
    with ExitStack() as patches, open_device(threads=1) as device:
        for target, stand_in in stand_ins.items():
            patched(patches, target, partial(lambda new, _: new, stand_in))
        for number in range(1 + options.rounds):
            for slow in (False, True) if number % 2 else (True, False):
                folder = scratch / f"{number}-{slow}"
                meter = measure(shards, recipe, models, device, folder, slow)
                if number:  # the first round compiles kernels
                    meters[slow].append(meter)
    pairs = sum(pq.read_metadata(path).num_rows for path in (folder / "scores").iterdir())
    found = figures(meters[False], meters[True], pairs)
    print_figures(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = harness.new_parser(__doc__, rounds=5)
    parser.add_argument("--data", nargs="+", metavar="INPUT", help="tars, tables, folders, globs (default: the demo's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    return harness.main(compare, parser.parse_args(arguments), ("pillow", "opencc", "xxhash"))


if __name__ == "__main__":
    sys.exit(main())
