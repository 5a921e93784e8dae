"""The three phases in a row, as the commands, the demo and the benchmarks run them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.decide import decide
from engine.device import Device, kind_of, open_device
from engine.dictionary import file_hash
from engine.funnel import Funnel
from engine.memory import Memory
from engine.merge import merge
from engine.recipe import Recipe
from engine.reference import held_against, only_features, place_of_reference
from engine.report.html import write_report
from engine.report.terminal import ProgressBar
from engine.run import Run
from engine.sources import Layout, find_shards
from engine.stages import Context, stored_columns
from engine.stages.resize import chosen_resizer
from engine.stages.source import read_blocklist
from engine.topics import Topics, find_topics
from engine.workers import score_on_one, score_on_several
from engine.write import WEBDATASET, write
from profiling.spans import Spans
from trt_models.store import ModelSet

DEFAULT_MAX_PIXELS = 178_956_970
"""Where Pillow, too, refuses a picture as a decompression bomb."""


@dataclass(frozen=True)
class Settings:
    """How to score, beside the recipe. What can change a score is part of the run's identity.

    `user_dictionaries`: words that jieba does not know, in its format. `devices`: those that score, if more than one.
    `strict_engines`: raise an error if an engine in use does not open. `resizer`: see `open_resizer`.
    """

    layout: Layout = field(default_factory=Layout)
    blocklist: Path | None = None
    user_dictionaries: tuple[Path, ...] = ()
    score_everything: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS
    device: str = "cpu"
    devices: tuple[str, ...] = ()
    threads: int | None = None
    memory_limit: int | None = None
    strict_engines: bool = False
    resizer: str = "auto"
    profile: bool = False
    metrics_port: int | None = None
    metrics_address: str = "127.0.0.1"

    @cached_property
    def blocked_domains(self) -> frozenset[str]:
        return read_blocklist(self.blocklist) if self.blocklist else frozenset()

    def rules(self) -> dict[str, Any]:
        """What captions and URLs are judged by, as hashes."""
        blocked = "\n".join(sorted(self.blocked_domains)).encode()
        return {
            "blocklist": hashlib.sha256(blocked).hexdigest()[:16] if blocked else None,
            "user_dictionaries": [file_hash(path)[:16] for path in self.user_dictionaries],
        }

    @property
    def resizers(self) -> list[str]:
        """Names of the resizers of the devices that score. `kernel` gives equal pixels on all devices, `dali` not."""
        return sorted({chosen_resizer(self.resizer, kind_of(name)) for name in self.devices or (self.device,)})

    def context(self, device: Device, models: ModelSet, wanted: Iterable[str]) -> Context:
        memory = Memory.of(device.kind, self.memory_limit, self.max_pixels)
        return Context(
            device, models, frozenset(wanted), self.blocked_domains, self.max_pixels, self.user_dictionaries, memory,
            self.resizer,
        )  # fmt: skip


def known_columns() -> list[str]:
    """Every column a criterion may name."""
    return [*stored_columns(), "image_bytes"]


def score_inputs(inputs: Iterable[str], output: Path, recipe: Recipe, settings: Settings) -> tuple[Run, Spans]:
    """SCORE: creates the run, or goes on with it. Returns no spans if there was nothing left to do."""
    shards = find_shards(inputs, settings.layout)
    identity = {
        "models": ModelSet(recipe.models).hashes(),
        **settings.rules(),
        "score_everything": settings.score_everything,
        "max_pixels": settings.max_pixels,
        "resizers": settings.resizers,
    }
    run = Run.create_or_resume(output, shards, recipe, settings.layout, identity)
    waiting = run.unscored()
    if not waiting:
        return run, Spans()
    started = time.monotonic()
    with run.logged(), ProgressBar("score", sum(shard.bytes for shard in waiting)) as progress:
        spans = (score_on_several if settings.devices else score_on_one)(run, settings, progress)
    run.note("counts", scored_shards=len(run.shards))
    run.note("times", score_seconds=round(time.monotonic() - started, 3))
    return run, spans


def decide_run(run: Run, recipe: Recipe, device: str = "cpu", threads: int | None = None) -> Funnel:
    """DECIDE, on a device opened for it."""
    with run.logged(), open_device(device, threads) as opened, ProgressBar("decide", 0, "comparisons") as progress:
        return decide(run, recipe, opened, progress)


def merge_runs(
    folders: Sequence[Path], output: Path, device: str = "cpu", threads: int | None = None
) -> tuple[Run, Funnel]:
    """MERGE, on a device opened for it."""
    with open_device(device, threads) as opened, ProgressBar("merge", 0, "comparisons") as progress:
        return merge(folders, output, opened, progress)


def write_run(run: Run, output_format: str = WEBDATASET) -> int:
    """WRITE, with the report, unless these verdicts are written so already; returns the number of kept pairs."""
    run.check_decided()
    wanted = {"recipe_hash": run.manifest["decided"]["recipe_hash"], "output_format": output_format}
    if wanted.items() - run.manifest.get("written", {}).items():
        with run.logged(), ProgressBar("write", sum(shard.bytes for shard in run.shards)) as progress:
            kept = write(run, progress, output_format)
            write_report(run)
        run.note("written", **wanted, kept=kept)
    return int(run.manifest["written"]["kept"])


def topics_of(run: Run, sample: int, smallest: int | None, device: str = "cpu", threads: int | None = None) -> Topics:
    """TOPICS, on a device opened for it, and the report with them."""
    with run.logged(), open_device(device, threads) as opened, ProgressBar("topics", 0, "captions") as progress:
        context = Settings().context(opened, ModelSet(run.recipe.models), ())
        found = find_topics(run, context, progress, sample, smallest)
    write_report(run)
    return found


def curate(
    inputs: Iterable[str],
    output: Path,
    recipe: Recipe,
    settings: Settings,
    output_format: str = WEBDATASET,
    against: Sequence[Path] = (),
    excluded: Sequence[Path] = (),
    exclude_within: float | None = None,
) -> tuple[Run, Funnel, Spans]:
    """SCORE, DECIDE, WRITE; what is finished already is not done again.

    Args:
        against: curated runs; what is near one of their kept rows is dropped.
        excluded: folders of evaluation pictures, or runs of them; what is near one of them is dropped.
    """
    for folder in against:
        Run.open(folder)
    references = {folder: place_of_reference(folder, output) for folder in excluded}
    pictures = {folder: place for folder, place in references.items() if folder != place}
    for folder in pictures:
        find_shards([str(folder)], settings.layout)  # now, not when everything has been scored
    recipe = held_against(recipe, against, references.values(), exclude_within)
    run, spans = score_inputs(inputs, output, recipe, settings)
    for folder, place in pictures.items():
        score_inputs([str(folder)], place, only_features(recipe), settings)
    funnel = decide_run(run, recipe, settings.device, settings.threads)
    write_run(run, output_format)
    return run, funnel, spans
