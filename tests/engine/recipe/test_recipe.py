from __future__ import annotations

from pathlib import Path

import pytest

from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.criteria import Redundancy, Threshold
from danqing.engine.recipe.reading import Recipe, builtin_names, load_recipe, recipe_from_dict
from danqing.engine.run.folder import Run
from danqing.engine.stages import model_roles
from danqing.engine.stages.columns import known_columns

# DanQing (arXiv 2601.10305), Table 6 and section 3: criterion → what the paper states.
PAPER = {
    "words": {"minimum": 5, "maximum": 60},
    "unknown_tokens": {"maximum": 5},
    "text_entropy": {"minimum": 6e-4},
    "aspect_ratio": {"minimum": 1 / 3, "maximum": 3},
    "shortest_edge": {"above": 100},
    "pixel_std": {"minimum": 2},
    "laplacian_variance": {"minimum": 1000},
    "image_entropy": {"minimum": 3},
    "alignment_distance": {"minimum": 1.06, "maximum": 1.24},
}


def test_the_paper_recipe_has_the_papers_thresholds() -> None:
    criteria = {c.name: c for c in load_recipe("danqing", columns=known_columns()).criteria}
    for name, bounds in PAPER.items():
        criterion = criteria[name]
        assert isinstance(criterion, Threshold)
        for bound, value in bounds.items():
            assert getattr(criterion.interval, bound) == pytest.approx(value)
    beta = criteria["redundancy"]
    assert isinstance(beta, Redundancy) and beta.within == 0.1


def test_the_embedded_recipe_is_the_same_list() -> None:
    paper, embedded = load_recipe("danqing"), load_recipe("embedded", columns=known_columns())
    assert [c.name for c in embedded.criteria] == [c.name for c in paper.criteria]
    assert [c.step for c in embedded.criteria] == [c.step for c in paper.criteria]
    assert set(builtin_names()) == {"danqing", "danqing-plus", "embedded"}
    assert {c.prefer for c in embedded.near_duplicates} == {"survivors"} and {
        c.prefer for c in paper.near_duplicates
    } == {""}
    rules = {c.name: c.rule for c in embedded.criteria if c in embedded.near_duplicates}
    assert set(rules.values()) == {"one of each group, cosine distance < 0.1, survivors preferred"}


def test_the_recipe_with_tiers_is_the_same_list_with_more_lines() -> None:
    embedded, plus = load_recipe("embedded"), load_recipe("danqing-plus", columns=known_columns())
    assert plus.models == embedded.models
    added = [c for c in plus.criteria if c not in embedded.criteria]
    assert [c.name for c in added] == ["exact_copies", "similar_hash", "same_caption", "similar_caption"]
    assert tuple(c for c in plus.criteria if c not in added) == embedded.criteria
    assert plus.criteria[plus.criteria.index(added[-1]) + 1] == plus.near_duplicates[0]
    assert all(isinstance(c, Redundancy) and c.prefer == "survivors" for c in added)


def test_settings_override() -> None:
    recipe = load_recipe("danqing", ["words.max=40", "models.image_safety=other", "text_entropy.min=1e-3"])
    words = next(c for c in recipe.criteria if c.name == "words")
    assert isinstance(words, Threshold) and words.interval.maximum == 40 and words.interval.minimum == 5
    assert recipe.models["image_safety"] == "other"
    assert recipe.differences(load_recipe("danqing")) == [
        "models.image_safety: freepik-nsfw there, other here",
        "words.max: 60.0 there, 40.0 here",
        "text_entropy.min: 0.0006 there, 0.001 here",
    ]


def test_a_bound_can_be_removed() -> None:
    words = next(c for c in load_recipe("danqing", ["words.max=null"]).criteria if c.name == "words")
    assert isinstance(words, Threshold) and words.interval.maximum is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("word.max=4", "did you mean 'words'?"),
        ("words.mx=4", "did you mean 'max'?"),
        ("words.max=many", "words.max must be a number"),
        ("words.max=true", "words.max must be a number"),
        ("words.max=2", "no value lies in"),
        ("models.imag_safety=x", "did you mean 'image_safety'?"),
        ("words", "--set words"),
        ("words.max=[1", "not a YAML value"),
        ("redundancy.max=3", "takes no 'max'"),
        ("redundancy.within=3", "cosine distance"),
        ("words.column=wrds", "did you mean 'words'?"),
    ],
)
def test_wrong_settings_are_refused(setting: str, message: str) -> None:
    with pytest.raises(DanqingError) as caught:
        load_recipe("danqing", [setting], known_columns(), model_roles())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "recipe: x\ncriteria:\n  words: {mni: 5}\n",
            ":3: unknown key 'mni' in criterion 'words'; did you mean 'min'?",
        ),
        (
            "recipe: x\ncritera:\n  words: {min: 5}\n",
            ":2: unknown key 'critera' in the recipe; did you mean 'criteria'?",
        ),
        ("recipe: x\ncriteria:\n  words: {min: 5}\n  words: {min: 6}\n", ":4: 'words' is here twice"),
        ("recipe: x\ncriteria:\n  words: {min: five}\n", ":3: words.min must be a number, not 'five'"),
        (
            "recipe: x\ncriteria:\n  wrods: {min: 5}\n",
            ":3: wrods: no stage computes a column 'wrods'; did you mean 'words'?",
        ),
        ("recipe: x\ncriteria:\n  words: {min: 7, max: 6}\n", ":3: words: no value lies in"),
        ("recipe: x\ncriteria:\n  words: 5\n", ":3: criterion 'words' must be a mapping"),
        ("recipe: x\n", "the key 'criteria' is missing"),
        ("recipe: [x\n", "not valid YAML"),
        ("- x\n", "a recipe is a mapping"),
    ],
)
def test_wrong_files_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(DanqingError) as caught:
        load_recipe(path, columns=known_columns())
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + "recipe: *a59\n", "mine.yaml:2: not valid YAML: aliases (*name) are not supported"),
        ("recipe: x\ncriteria: &c\n  words: {min: 5}\nalso: *c\n", "mine.yaml:4: not valid YAML: aliases (*name)"),
        ("recipe: x\nalso: " + "[" * 30_000, "mine.yaml:2: not valid YAML: nested deeper than 8 levels"),
        ("recipe: x\n" + "# x\n" * 20_000, "mine.yaml: a recipe has at most 65,536 bytes; this is another file"),
        ("recipe: x\ncriteria:\n  words: {min: 1e400}\n", "mine.yaml:3: words: a bound must be a finite number"),
        ("recipe: x\ncriteria:\n  words: {max: .inf}\n", "mine.yaml:3: words: a bound must be a finite number"),
        ("recipe: x\ncriteria:\n  words: {above: -.INF}\n", "mine.yaml:3: words: a bound must be a finite number"),
        ("recipe: x\ncriteria:\n  words: {min: .nan}\n", "mine.yaml:3: words: a bound must be a finite number"),
        ("recipe: x\ncriteria:\n  r: {within: .nan}\n", "mine.yaml:3: r: 'within' is a cosine distance"),
        (
            f"recipe: x\ncriteria:\n  words: {{min: 1{'0' * 400}}}\n",
            "mine.yaml:3: words.min must be a number, not 1000",
        ),
        (f"recipe: x\ncriteria:\n  words: {{min: {'9' * 5000}}}\n", "mine.yaml:3: words: a bound must be a finite"),
        ("recipe: x\ncriteria:\n  words: {min: 2024-99-99}\n", "mine.yaml:3: words.min must be a number, not '2024-"),
        ("recipe: !!python/name:os.system x\ncriteria: {}\n", "mine.yaml:2: a recipe needs at least one criterion"),
        ("recipe: [x]\ncriteria:\n  words: {min: 5}\n", "mine.yaml:1: recipe must be text, not a list or a mapping"),
        ("recipe: x\n[a]: 1\n", "mine.yaml:2: a key of a recipe is a name, not a list or a mapping"),
        ("recipe: x\ncriteria:\n  r: {within: 0.1, prefer: all}\n", "mine.yaml:3: r: 'prefer' is survivors or is left"),
    ],
)
def test_recipes_that_are_meant_to_harm_are_refused_at_once(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(DanqingError) as caught:
        load_recipe(path)
    assert message in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", ["*a", "[" * 500, "{" * 500])
def test_settings_that_are_meant_to_harm_are_refused(value: str) -> None:
    with pytest.raises(DanqingError, match="is not a YAML value"):
        load_recipe("embedded", [f"also={value}"])


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("language: {min: 1}", "the column 'language' holds text, and a threshold needs numbers; columns of numbers:"),
        ("text_clean: {below: 1}", "the column 'text_clean' holds text"),
        ("features: {min: 0}", "holds vectors, and a threshold needs numbers; compare it with 'within', for example"),
        ("hash: {column: perceptual_hash, max: 4}", "{column: perceptual_hash, within: 4}"),
        ("pixels: {min: 1}", "holds values that are not stored"),
        ("caption: {min: 1}", "no stage computes a column 'caption'"),
        ("keep: {min: 1}", "no stage computes a column 'keep'"),
        ("image_entropy: {min: 9}", "image_entropy ≥ 9 drops every pair, since values are between 0 and 8 bits"),
        ("words: {max: -1}", "drops every pair, since values are at least 0 words"),
        ("readable: {above: 1}", "drops every pair"),
        ("image_entropy: {max: 9}", "image_entropy ≤ 9 drops no pair"),
        ("stop_word_share: {below: 50}", "stop_word_share < 50 drops no pair"),
    ],
)
def test_a_criterion_must_suit_its_column(tmp_path: Path, criterion: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"recipe: x\ncriteria:\n  {criterion}\n")
    with pytest.raises(DanqingError) as caught:
        load_recipe(path)
    assert message in str(caught.value) and f"{path}:3: " in str(caught.value)


@pytest.mark.parametrize(
    "criterion",
    ["words: {min: -5}", "unsafe_image: {max: 1}", "image_entropy: {min: 3, max: 9}", "has_alpha: {max: 0}"],
)
def test_bounds_that_suit_their_column_are_accepted(tmp_path: Path, criterion: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"recipe: x\ncriteria:\n  {criterion}\n")
    assert load_recipe(path).criteria


def test_other_thresholds_for_a_run_are_checked_too() -> None:
    stored = load_recipe("danqing").to_dict()
    assert recipe_from_dict(stored, "run.json", ["words.column=language"])  # as stored, unchecked
    with pytest.raises(DanqingError, match=r"--set words\.column=language: words: the column 'language' holds text"):
        recipe_from_dict(stored, "run.json", ["words.column=language"], known_columns())


def test_wrong_recipes_end_a_command_before_any_shard_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: x\ncriteria:\n  text_clean: {min: 1}\n")
    for command in ("score", "curate", "select"):
        assert main([command, "nowhere.tar", "-o", str(tmp_path / "out"), "--recipe", str(path)]) == 2
        assert f"{path}:3: text_clean: the column 'text_clean' holds text" in capsys.readouterr().err
    Run.create(tmp_path / "run", load_recipe("embedded"), {"shards": [], "layout": {}, "models": {}})
    for options in (["--recipe", str(path)], ["--set", "words.column=language"]):
        assert main(["decide", str(tmp_path / "run"), *options]) == 2
        assert "holds text" in capsys.readouterr().err


def test_an_unknown_recipe_suggests_the_nearest_name() -> None:
    with pytest.raises(DanqingError, match="did you mean 'danqing'"):
        load_recipe("danqin")


def test_a_recipe_is_read_back_from_its_dict() -> None:
    recipe = load_recipe("danqing", ["words.max=41"])
    again = recipe_from_dict(recipe.to_dict(), "run.json")
    assert again == recipe and again.hash == recipe.hash != load_recipe("danqing").hash


def test_order_is_part_of_the_hash() -> None:
    recipe = load_recipe("danqing")
    turned = Recipe(recipe.name, recipe.models, recipe.criteria[::-1])
    assert turned.hash != recipe.hash
    assert turned.differences(recipe) == ["the order of the criteria"]


def test_also_columns_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("recipe: r\nalso: [sha256]\ncriteria:\n  words: {min: 3}\n")
    recipe = load_recipe(path)
    assert recipe.also == ("sha256",)
    other = load_recipe(path, ["also=[sha256, perceptual_hash]"])
    assert other.hash == recipe.hash and other.differences(recipe) == [
        "also: ['sha256'] there, ['sha256', 'perceptual_hash'] here"
    ]
    assert recipe_from_dict(other.to_dict(), "run.json") == other
    with pytest.raises(DanqingError, match=r"--set also=\[sha257\]: no stage stores .* did you mean 'sha256'"):
        load_recipe(path, ["also=[sha257]"])
    path.write_text("recipe: r\nalso: sha256\ncriteria:\n  words: {min: 3}\n")
    with pytest.raises(DanqingError, match=r"r\.yaml:2: 'also' is a list of columns"):
        load_recipe(path)
