from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from danqing.engine.core.columns import SHARD_COLUMNS
from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.plan import make_plan
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.stages import CATALOGUE


def test_the_paper_recipe_runs_every_stage_and_the_cheap_ones_first() -> None:
    plan = make_plan(load_recipe("danqing"), CATALOGUE, SHARD_COLUMNS)
    names = [step.stage.name for step in plan.steps]
    optional = {"caption hash", "digest", "perceptual hash", "aesthetic", "perplexity"}
    assert sorted(names) == sorted({stage.name for stage in CATALOGUE} - optional)
    gates = {gate.name: step.stage.name for step in plan.steps for gate in step.gates}
    assert gates["words"] == "source" or gates["words"] == "caption"
    assert gates["aspect_ratio"] == gates["shortest_edge"] == "header"  # before a pixel is decoded
    assert gates["unsafe_image"] == "image safety"
    assert names.index("image safety") < names.index("text embedding")


def test_every_column_is_computed_before_it_is_needed() -> None:
    have = set(SHARD_COLUMNS)
    for step in make_plan(load_recipe("danqing"), CATALOGUE, SHARD_COLUMNS).steps:
        assert set(step.stage.needs) <= have
        have |= set(step.stage.produces)
        have -= set(step.spent)


def test_stages_that_no_criterion_needs_do_not_run(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("recipe: r\ncriteria:\n  image_entropy: {min: 3}\n")
    plan = make_plan(load_recipe(path), CATALOGUE, SHARD_COLUMNS)
    assert [step.stage.name for step in plan.steps] == ["header", "decode", "pixels"]
    assert "pixels" in plan.steps[-1].spent and "image" in plan.steps[1].spent


def test_also_columns_are_computed_right_after_what_they_need() -> None:
    plain = load_recipe("danqing")
    names = [step.stage.name for step in make_plan(plain, CATALOGUE, SHARD_COLUMNS).steps]
    plan = make_plan(replace(plain, also=("perceptual_hash", "sha256")), CATALOGUE, SHARD_COLUMNS)
    wanted = names.copy()
    wanted.insert(wanted.index("resize") + 1, "perceptual hash")
    assert [step.stage.name for step in plan.steps] == ["digest", *wanted]
    assert {"sha256", "perceptual_hash", "hash_input"} <= plan.wanted
    assert "image" in next(step.spent for step in plan.steps if step.stage.name == "decode")
    alone = make_plan(Recipe("r", {}, plain.criteria[:1], also=("perceptual_hash",)), CATALOGUE, SHARD_COLUMNS)
    assert [step.stage.name for step in alone.steps][-4:] == ["header", "decode", "resize", "perceptual hash"]
    with pytest.raises(DanqingError, match="no stage computes a column 'nonsense'"):
        make_plan(replace(plain, also=("nonsense",)), CATALOGUE, SHARD_COLUMNS)


@pytest.mark.parametrize("first", ["image_entropy", "words"])
def test_a_gate_runs_after_every_earlier_criterion(tmp_path: Path, first: str) -> None:
    """When a gate drops a row, the columns of all earlier criteria are computed."""
    second = {"image_entropy": "words", "words": "image_entropy"}[first]
    path = tmp_path / "r.yaml"
    path.write_text(f"recipe: r\nmodels: {{}}\ncriteria:\n  {first}: {{min: 3}}\n  {second}: {{min: 3}}\n")
    steps = make_plan(load_recipe(path), CATALOGUE, SHARD_COLUMNS).steps
    known: set[str] = set()
    order = [first, second]
    for step in steps:
        known |= set(step.stage.produces)
        for gate in step.gates:
            assert set(order[: order.index(gate.name) + 1]) <= known


def test_two_stages_of_one_column_are_refused() -> None:
    twin = type("Twin", (), {"name": "twin", "needs": (), "produces": {"words": None}})
    with pytest.raises(DanqingError, match="'caption' and 'twin' both compute the column 'words'"):
        make_plan(load_recipe("danqing"), [*CATALOGUE, twin], SHARD_COLUMNS)


def test_a_recipe_needs_only_the_models_of_its_criteria(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("recipe: r\ncriteria:\n  words: {min: 3}\n  nouns: {min: 1}\n")
    scores = make_plan(load_recipe(path), CATALOGUE, SHARD_COLUMNS).scores
    assert "nouns" in scores and not {"unsafe_text", "unsafe_caption"} & scores.keys()
    path.write_text("recipe: r\ncriteria:\n  words: {min: 3}\n  unsafe_text: {max: 0}\n")
    assert "unsafe_text" in make_plan(load_recipe(path), CATALOGUE, SHARD_COLUMNS).scores
    path.write_text("recipe: r\nmodels: {text_safety: jionlp-pornography}\ncriteria:\n  words: {min: 3}\n")
    assert "unsafe_text" in make_plan(load_recipe(path), CATALOGUE, SHARD_COLUMNS).scores
