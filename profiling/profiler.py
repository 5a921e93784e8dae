"""PROFILE: SCORE of the same pairs twice, stages in turn and at once, to see where the time goes; nothing is kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from danqing.engine.core.columns import SHARD_COLUMNS
from danqing.engine.core.device import open_device
from danqing.engine.recipe.plan import make_plan
from danqing.engine.recipe.reading import Recipe
from danqing.engine.report.terminal import ProgressBar
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.score.loop import score
from danqing.engine.sources import find_shards, first_rows
from danqing.engine.stages import CATALOGUE
from danqing.profiling.limits import measure_limits
from danqing.profiling.profile import Profile
from danqing.profiling.sampler import Sampler
from danqing.profiling.watch import Watch
from danqing.trt_models.model_set import ModelSet


def profile(
    inputs: Iterable[str], output: Path, recipe: Recipe, settings: Settings, models: ModelSet | None = None
) -> Profile:
    """Writes profile.json, profile.html and trace.json into the folder.

    Args:
        models: to score with, if not those that the recipe names as they are in use.
    """
    shards = first_rows(find_shards(inputs, settings.layout), settings.limit, settings.layout)
    plan = make_plan(recipe, CATALOGUE, SHARD_COLUMNS)
    size, gated = sum(shard.bytes for shard in shards), not settings.score_everything
    with TemporaryDirectory() as scratch, open_device(settings.device, settings.threads) as device:
        models = models or ModelSet(recipe.models, strict=settings.strict_engines)
        context = settings.context(device, models, plan.wanted)
        run = Run.create_or_resume(Path(scratch) / "in_turn", shards, recipe, settings.layout, {})
        with run.logged():
            limits = measure_limits(shards, settings.layout, plan, context)
            with ProgressBar("in turn", size) as progress, Sampler() as in_turn:
                alone = score(run, plan, context, progress, gated, room=0)
            run = Run.create_or_resume(Path(scratch) / "at_once", shards, recipe, settings.layout, {})
            with ProgressBar("at once", size) as progress, Watch(device, limits) as watch:
                score(run, plan, context, progress, gated, spans=watch.spans)
        return watch.write(output, alone, in_turn)
