"""PROFILE: SCORE of the same pairs twice, stages in turn and at once, to see where the time goes; nothing is kept."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.batch import Batch
from engine.curate import Settings
from engine.device import open_device
from engine.files import write_json
from engine.plan import Plan, make_plan
from engine.recipe import Recipe
from engine.report.profile import write_profile
from engine.report.terminal import ProgressBar
from engine.run import Run
from engine.score import GIVEN, batches_of, run_stages, score
from engine.sources import Shard, find_shards, open_shard
from engine.stages import CATALOGUE, Context
from profiling.profile import Profile, to_trace
from profiling.sampler import Sampler
from profiling.spans import Event, Spans
from trt_models.store import ModelSet

FIRST = 64
"""Pairs that are scored beforehand, so that no kernel is compiled and no session opened while it is timed."""


class Nowhere:
    """Where rows go that nobody wants."""

    def enter(self, batch: Batch, gated_at: str | None = None) -> None: ...


def profile(inputs: Iterable[str], output: Path, recipe: Recipe, settings: Settings) -> Profile:
    """Writes profile.json, profile.html and trace.json into the folder."""
    shards, plan = find_shards(inputs, settings.layout), make_plan(recipe, CATALOGUE, GIVEN)
    gated = not settings.score_everything
    with TemporaryDirectory() as scratch, open_device(settings.device, settings.threads) as device:
        context = settings.context(device, ModelSet(recipe.models), plan.wanted)
        run = Run.create_or_resume(Path(scratch) / "in_turn", shards, recipe, settings.layout, {})
        with run.logged():
            _warm_up(shards, plan, context, settings)
            with ProgressBar("in turn", sum(shard.bytes for shard in shards)) as progress, Sampler() as in_turn:
                alone = score(run, plan, context, progress, gated, room=0)
            run = Run.create_or_resume(Path(scratch) / "at_once", shards, recipe, settings.layout, {})
            events: list[Event] = []
            with ProgressBar("at once", sum(shard.bytes for shard in shards)) as progress, Sampler() as at_once:
                together = score(run, plan, context, progress, gated, spans=Spans(events))
        found = Profile.of(together["read"].rows, device.threads, alone, in_turn, together, at_once)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "profile.json", found.to_dict())
    write_json(output / "trace.json", to_trace(events, at_once.looks))
    write_profile(output / "profile.html", found, events, at_once.looks)
    return found


def _warm_up(shards: list[Shard], plan: Plan, context: Context, settings: Settings) -> None:
    samples = islice(open_shard(shards[0], settings.layout), FIRST)
    run_stages(batches_of(shards[0], samples), plan, context, Nowhere(), Spans(), gated=False)
