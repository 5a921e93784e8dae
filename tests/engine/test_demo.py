"""The demo: the crawl, its photographs, and the verdicts on the planted defects."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from danqing.engine.core.progress import silent
from danqing.engine.decide.funnel import Funnel
from danqing.engine.demo import run_demo
from danqing.engine.demo.comparison import Judgement, judge, roc_area
from danqing.engine.demo.crawl import CLEAN, FOLDER, MISMATCH, build_crawl, pairs, photographs
from danqing.engine.demo.defects import DEFECTS
from danqing.engine.demo.training import verdict
from danqing.engine.phases import decide_run
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings


def test_photographs_are_attributed_and_small() -> None:
    records = photographs()
    files = sorted(p.name for p in (FOLDER / "photos").iterdir())
    assert [r["file"] for r in records] == files and len(files) >= 30
    assert sum(len((FOLDER / "photos" / name).read_bytes()) for name in files) <= 5_000_000
    free = ("CC0-1.0", "CC-BY-", "CC-BY-SA-", "public domain")
    attribution = (FOLDER / "PHOTOS.md").read_text(encoding="utf-8")
    for record in records:
        assert record["licence"].startswith(free) and record["author"] and record["source"]
        assert f"| {record['file']} |" in attribution and record["author"] in attribution
        assert len(set(record["captions"])) == 2
        with Image.open(FOLDER / "photos" / record["file"]) as image:  # type: ignore[arg-type]
            assert min(image.size) > 100


def test_every_criterion_has_a_planted_defect() -> None:
    planted = {expected for expected, _ in DEFECTS.values()} | {"alignment_distance"}
    criteria = [c.name for c in load_recipe("embedded").criteria]
    # No unsafe picture ships with the project; cross-batch redundancy needs a second batch.
    assert set(criteria) - planted == {"unsafe_image", "cross_batch_redundancy"}
    counts = Counter(pair.kind for pair in pairs())
    assert sum(counts.values()) >= 600 and min(counts.values()) >= 20 and counts[CLEAN] >= 40


@pytest.fixture(scope="module")
def with_tiers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Judgement, dict[str, int]]:
    """The run, its judgement and the number of pairs that each criterion dropped, with the recipe `danqing-plus`."""
    folder = tmp_path_factory.mktemp("demo")
    judgement = run_demo(folder, Settings(), "danqing-plus")
    run = Run.open(folder / "run")
    return run, judgement, {line.criterion: line.dropped for line in Funnel.of(run).lines}


@pytest.fixture(scope="module")
def judged(with_tiers: tuple[Run, Judgement, dict[str, int]]) -> tuple[Run, Judgement]:
    """The same run decided with the default recipe, which needs no further scores."""
    run, _, _ = with_tiers
    decide_run(run, load_recipe("embedded"), progress=silent)
    return run, judge(run)


def test_the_recipe_with_tiers_keeps_what_it_should(with_tiers: tuple[Run, Judgement, dict[str, int]]) -> None:
    _, judgement, dropped = with_tiers
    assert judgement.caught >= 0.98 and judgement.clean_kept >= 0.97
    assert judgement.kinds["exact duplicate"].dropped == dropped["exact_copies"] == 26
    assert dropped["similar_hash"] >= 20 and dropped["same_caption"] == dropped["similar_caption"] == 0
    assert judgement.kinds["near duplicate"].dropped == 26


def test_the_crawl_is_the_same_every_time(judged: tuple[Run, Judgement], tmp_path: Path) -> None:
    first, second = sorted((judged[0].folder.parent / "crawl").iterdir()), build_crawl(tmp_path)
    assert [path.read_bytes() for path in first] == [Path(path).read_bytes() for path in second]


def test_planted_defects_are_caught_and_clean_pairs_kept(judged: tuple[Run, Judgement]) -> None:
    _, judgement = judged
    assert judgement.caught >= 0.98
    for kind, tally in judgement.kinds.items():
        if kind != MISMATCH:
            assert tally.dropped >= 0.98 * tally.planted, kind
            assert tally.as_expected >= 0.7 * tally.planted, kind
    assert judgement.clean_kept >= 0.97
    assert judgement.auc >= 0.8


def test_traditional_and_decorated_captions_are_kept_and_cleaned(judged: tuple[Run, Judgement]) -> None:
    run, _ = judged
    by_script: Counter[str] = Counter()
    captions = {caption for record in photographs() for caption in record["captions"]}
    for shard in run.shards:
        for row in pq.read_table(run.scores_path(shard.number)).to_pylist():
            if row.get("script") and row["planted"] == CLEAN:
                by_script[row["script"]] += 1
                assert row["caption"] != row["text_clean"] and row["text_clean"] in captions
    assert by_script["traditional"] >= 5 and by_script["decorated"] >= 5


def test_one_member_of_every_group_is_kept(judged: tuple[Run, Judgement]) -> None:
    run, _ = judged
    verdicts = [row for s in run.shards for row in pq.read_table(run.verdicts_path(s.number)).to_pylist()]
    groups = Counter(row["group"] for row in verdicts if row["group"] >= 0)
    kept = Counter(row["group"] for row in verdicts if row["group"] >= 0 and row["dropped_by"] != "redundancy")
    assert groups and all(size > 1 for size in groups.values())
    assert kept == Counter(dict.fromkeys(groups, 1))
    uids = {row["uid"] for row in verdicts if row["group"] >= 0}
    assert all(row["kept_instead"] in uids for row in verdicts if row["dropped_by"] == "redundancy")


def test_roc_area_of_known_orders() -> None:
    assert roc_area([1, 2], [3, 4]) == 1
    assert roc_area([3, 4], [1, 2]) == 0
    assert roc_area([1, 1], [1, 1]) == 0.5
    assert roc_area([1, 3], [2, 4]) == 0.75


def test_curation_helped_only_if_every_seed_agrees() -> None:
    assert verdict(np.array([0.1, 0.2, 0.3])).startswith(
        "curation helped for every seed: mean recall +0.200, from +0.1"
    )
    assert verdict(np.array([-0.1, -0.2])).startswith("curation harmed for every seed")
    assert verdict(np.array([-0.1, 0.3])).startswith("the seeds do not agree")
