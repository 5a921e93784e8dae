"""PROFILE: scores the same pairs twice, sequentially and pipelined, and reports per stage. The scores are not kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from danqing.engine.core.columns import SHARD_COLUMNS
from danqing.engine.core.device import open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.plan import make_plan
from danqing.engine.recipe.reading import Recipe
from danqing.engine.report.terminal import ProgressBar
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.score.loop import score
from danqing.engine.sources import check_parts, find_shards, first_rows
from danqing.engine.stages.patterns import stages_for
from danqing.profiling.limits import measure_limits
from danqing.profiling.profile import Profile
from danqing.profiling.sampler import Sampler
from danqing.profiling.watch import Watch
from danqing.trt_models.model_set import ModelSet


def profile(
    inputs: Iterable[str], output: Path, recipe: Recipe, settings: Settings, models: ModelSet | None = None
) -> Profile:
    """Profiles SCORE; writes profile.json, profile.html and trace.json.

    Args:
        inputs: paths or patterns of shards.
        output: the folder to write to.
        recipe: gives the stages and gates.
        settings: the device, threads and limits.
        models: the models to score with; None: the recipe's models with the engines in use.

    Returns:
        The profile, as written to profile.json.

    Raises:
        DanqingError: an input or a model cannot be read, or the device cannot be opened.
    """
    shards = first_rows(find_shards(inputs, settings.layout), settings.limit, settings.layout)
    check_parts(shards, settings.layout)
    plan = make_plan(recipe, stages_for(recipe), SHARD_COLUMNS)
    size, gated = sum(shard.bytes for shard in shards), not settings.score_everything
    with TemporaryDirectory() as scratch, open_device(settings.device, settings.threads) as device:
        models = models or ModelSet(recipe.models, strict=settings.strict_engines)
        context = settings.context(device, models, plan.wanted)
        run = Run.create_or_resume(Path(scratch) / "sequential", shards, recipe, settings.layout, {})
        with run.logged():
            limits = measure_limits(shards, settings.layout, plan, context)
            with ProgressBar("sequential", size) as progress, Sampler() as sampler:
                spans = score(run, plan, context, progress, gated, room=0)
            if not spans["read"].rows:
                raise DanqingError(
                    f"{shards[0].path}: no rows here or in the other inputs, so there is nothing to measure"
                )
            run = Run.create_or_resume(Path(scratch) / "pipelined", shards, recipe, settings.layout, {})
            with ProgressBar("pipelined", size) as progress, Watch(device, limits) as watch:
                score(run, plan, context, progress, gated, spans=watch.spans)
        return watch.write(output, spans, sampler)
