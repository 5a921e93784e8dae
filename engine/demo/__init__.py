"""`danqing demo`: builds a small crawl with known defects, curates it, and compares the verdicts with the defects."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from danqing.engine.demo.comparison import Judgement
    from danqing.engine.run.settings import Settings


def run_demo(folder: Path, settings: Settings, recipe_name: str = "embedded") -> Judgement:
    """Builds the crawl in FOLDER/crawl, curates it into FOLDER/run, and prints spans, funnel and judgement.

    Args:
        folder: where to write.
        settings: the device, threads and limits; without a block list, the demo's own is used.
        recipe_name: a built-in recipe for the models that come with packages.
    """
    from danqing.engine.demo.comparison import judge, print_judgement
    from danqing.engine.demo.crawl import BLOCKLIST, build_crawl
    from danqing.engine.phases import curate
    from danqing.engine.recipe.reading import load_recipe
    from danqing.engine.report.terminal import console, print_funnel, print_spans
    from danqing.engine.stages.columns import known_columns

    recipe = load_recipe(recipe_name, columns=known_columns())
    shards = build_crawl(folder / "crawl")
    with resources.as_file(BLOCKLIST) as blocklist:
        run, funnel, spans = curate(
            shards, folder / "run", recipe, replace(settings, blocklist=settings.blocklist or blocklist)
        )
    print_spans(spans)
    print_funnel(funnel)
    judgement = judge(run)
    print_judgement(judgement, [criterion.name for criterion in recipe.criteria])
    console.print(f"pictures: {run.folder / 'report.html'}   one pair: danqing explain {run.folder} KEY")
    return judgement
