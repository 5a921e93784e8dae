"""The part of a recipe that is applied before the download: criteria that need no picture, and their stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from danqing.engine.core.columns import TABLE_COLUMNS
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import Progress
from danqing.engine.core.spans import Spans
from danqing.engine.recipe.criteria import RowCriterion
from danqing.engine.recipe.plan import Plan, decidable, make_plan
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from danqing.engine.score.loop import run_stages
from danqing.engine.select.cores import run_on_cores
from danqing.engine.select.ledger import Judged, Ledger
from danqing.engine.select.usable import USABLE
from danqing.engine.sources.tables import Part
from danqing.engine.stages import CATALOGUE
from danqing.engine.stages.patterns import stages_for
from danqing.trt_models.model_set import ModelSet

CLEAN = "text_clean"
"""Computed for every recipe."""


@dataclass(frozen=True)
class TextPlan:
    """Criteria and stages that are applied before the download.

    Attributes:
        recipe: the criteria that need no picture.
        criteria: the same, after `USABLE`.
        stages: what computes the scores, and the clean caption.
        models: the recipe's models.
    """

    recipe: Recipe
    criteria: Recipe
    stages: Plan
    models: ModelSet

    @classmethod
    def of(cls, recipe: Recipe) -> TextPlan:
        """Makes the plan of a recipe.

        Raises:
            DanqingError: every criterion needs a picture.
        """
        text = before_download(recipe)
        stages = make_plan(text, stages_for(text), TABLE_COLUMNS, also=[CLEAN])
        return cls(text, replace(text, criteria=(USABLE, *text.criteria)), stages, ModelSet(text.models))

    def run(
        self,
        parts: Iterable[tuple[int, Part]],
        finished: Callable[[Judged], None],
        settings: Settings,
        device: Device,
        progress: Progress,
        spans: Spans,
    ) -> None:
        """Runs the stages on all rows of some parts.

        Args:
            parts: with their numbers; another thread reads them.
            finished: takes each part with its scores; called by the stages' threads.
            settings: block list and user dictionaries.
            device: runs the stages. On a CPU each core takes a batch and runs all stages on it.
            progress: receives the number of finished rows.
            spans: records every batch.
        """
        ledger = Ledger(self.stages.scores, device, progress, finished)
        context = settings.context(device, self.models, self.stages.wanted)
        if device.kind == "cuda":
            run_stages(ledger.batches(parts), self.stages, context, ledger, spans)
            return
        spans.open(["read"])
        with ThreadPoolExecutor(1, "danqing read") as reader:
            run_on_cores(ledger.batches(_read_ahead(iter(parts), reader)), self.stages, context, ledger, spans)


def _read_ahead(parts: Iterator[tuple[int, Part]], reader: ThreadPoolExecutor) -> Iterator[tuple[int, Part]]:
    """Yields the parts; reads one part ahead, not more, since a part takes tens of megabytes."""
    following = reader.submit(next, parts, None)
    while part := following.result():
        following = reader.submit(next, parts, None)
        yield part


def before_download(recipe: Recipe) -> Recipe:
    """Returns the recipe without the criteria and models that need a picture.

    Raises:
        DanqingError: every criterion needs a picture.
    """
    text_recipe = decidable(recipe, stages_for(recipe), TABLE_COLUMNS)
    # Near-duplicate search compares all rows, and SELECT has one part in memory.
    text_recipe = replace(text_recipe, criteria=tuple(c for c in text_recipe.criteria if isinstance(c, RowCriterion)))
    if not text_recipe.criteria:
        raise DanqingError(f"recipe {recipe.name}: every criterion needs a picture, so none can be applied here")
    image_roles = {stage.role for stage in CATALOGUE if stage.image_inputs}
    return replace(text_recipe, models={role: name for role, name in recipe.models.items() if role not in image_roles})
