"""Captions that are equal or similar: groups, verdicts, other runs, merging."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danqing.engine.cli.main import main
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.decide.dedup.captions import MIN_RECALL, SimilarTexts, nearest_texts
from danqing.engine.decide.merging import merge
from danqing.engine.decide.reference import with_references
from danqing.engine.decide.verdicts import decide
from danqing.engine.phases import curate
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.stages.columns import known_columns
from tests.conftest import picture
from tests.engine.decide.runs import make_run, on_circle, verdicts_of
from tests.kernels.text.test_hashes import jaccard_distance

EQUAL, SIMILAR = "{column: caption_hash, within: 0}", "{column: text_clean, within: 0.3}"
RECIPE = """
recipe: captions
models: {image_embedding: efficientnet-lite0-conse}
criteria:
"""
CAT, CATS, DOG = (
    "一只橘猫坐在窗台上看着外面的小鸟飞过",
    "一只橘猫坐在窗台上看着外面的小鸟飞来",
    "公园的草地上有一只小狗在追飞盘",
)


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    """Reads a recipe of these criteria, name → keys."""

    def read(**criteria: str) -> Recipe:
        path = tmp_path / "captions.yaml"
        path.write_text(RECIPE + "".join(f"  {name}: {keys}\n" for name, keys in criteria.items()))
        return load_recipe(path, columns=known_columns())

    return read


def similar(device: Device, texts: Sequence[str], within: float) -> SimilarTexts:
    encoded = pa.array(texts, pa.large_string()).dictionary_encode()
    return SimilarTexts(device, encoded.indices.to_numpy(), encoded.dictionary, within)


def run_of(
    folder: Path,
    recipe: Recipe,
    texts: Sequence[str],
    degrees: Sequence[float] | None = None,
    first_uid: int = 1,
    **scores: Sequence[Any],
) -> Run:
    """A scored run of captions; without `degrees`, its pictures are all different."""
    hashes = [f"{zlib.crc32(text.encode()):032x}" if text else "" for text in texts]
    features = on_circle(*(degrees or range(0, 30 * len(texts), 30)))
    return make_run(folder, recipe, features, {"text_clean": texts, "caption_hash": hashes, **scores}, (), first_uid)


def run_hashes(run: Run) -> list[str]:
    found: list[str] = pq.read_table(run.scores_path(0))["caption_hash"].to_pylist()
    return found


def changed(rng: np.random.Generator, text: str, characters: int) -> str:
    """The text with some characters replaced by others of their own."""
    places = set(rng.choice(len(text), characters, replace=False).tolist())
    return "".join(chr(rng.integers(0x4E00, 0x9FA5)) if i in places else c for i, c in enumerate(text))


def test_rows_of_equal_captions_form_a_group_and_empty_ones_none(
    recipe_of: Callable[..., Recipe], device: Device, tmp_path: Path
) -> None:
    texts = [CAT, DOG, "", CAT, "", CATS, DOG, CAT]
    run = run_of(tmp_path / "run", recipe_of(same_caption=EQUAL), texts)
    assert decide(run, run.recipe, device).kept == 5
    rows = verdicts_of(run)
    assert [row["dropped_by"] for row in rows] == [
        None,
        None,
        None,
        *["same_caption", None, None],
        *["same_caption"] * 2,
    ]
    assert [row["group"] for row in rows] == [0, 1, -1, 0, -1, -1, 1, 0]
    assert rows[7]["kept_instead"] == rows[0]["uid"] and rows[7]["distance"] == 0 and rows[2]["distance"] is None
    by_text = recipe_of(same_text="{column: text_clean, within: 0}")
    assert decide(run, by_text, device).kept == 5  # equal texts without the hash
    assert [row["group"] for row in verdicts_of(run)] == [0, 1, -1, 0, -1, -1, 1, 0]


def test_at_most_some_rows_of_a_group_are_kept(
    recipe_of: Callable[..., Recipe], device: Device, tmp_path: Path
) -> None:
    texts = [CAT] * 5 + [DOG] * 2 + [""] * 4
    run = run_of(tmp_path / "run", recipe_of(few=EQUAL), texts, width=[1, 5, 2, 5, 3, *range(6)])
    keys = '{column: caption_hash, within: 0, keep_at_most: 3, "keep": "highest:width"}'
    recipe = recipe_of(few=keys)
    decide(run, recipe, device)
    rows = verdicts_of(run)
    assert [row["keep"] for row in rows] == [False, True, False, True, True] + [True] * 6
    assert {row["kept_instead"] for row in rows if not row["keep"]} == {rows[1]["uid"]}  # of two 5s, the first
    assert "at most 3 of each group, equal caption_hash, highest width is kept" in recipe.criteria[0].rule
    survivors = recipe_of(few=keys.replace("}", ", prefer: survivors}"), wide="{column: width, max: 4}")
    decide(run, survivors, device)
    assert [row["keep"] for row in verdicts_of(run)][:5] == [True, False, True, False, True]  # all that pass `wide`
    near = recipe_of(near="{within: 0.01, keep: first, keep_at_most: 2}")
    near_run = run_of(tmp_path / "near", near, [CAT] * 4, degrees=[0, 1, 2, 90])
    decide(near_run, near, device)
    assert [row["keep"] for row in verdicts_of(near_run)] == [True, True, False, True]


def families(rng: np.random.Generator, count: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Captions of 12 to 40 characters, each beside one to three copies with up to five characters changed.

    Returns:
        The captions, and every pair of captions of one family; captions of different families share no shingle.
    """
    texts: list[str] = []
    family: list[int] = []
    for number in range(count):
        text = "".join(map(chr, rng.integers(0x4E00, 0x9FA5, rng.integers(12, 40))))
        copies = [text, *(changed(rng, text, rng.integers(0, 6)) for _ in range(rng.integers(1, 4)))]
        texts, family = texts + copies, family + [number] * len(copies)
    order = rng.permutation(len(texts))
    place = np.argsort(order)
    members = [place[np.flatnonzero(np.array(family) == number)].tolist() for number in range(count)]
    return [texts[i] for i in order.tolist()], [pair for rows in members for pair in combinations(sorted(rows), 2)]


@pytest.mark.parametrize("within", [0.1, 0.2, 0.3, 0.5])
def test_similar_captions_are_grouped_by_their_exact_distance(device: Device, within: float) -> None:
    texts, pairs = families(np.random.default_rng(int(100 * within)), 1500)
    near = [(a, b) for a, b in pairs if jaccard_distance(texts[a], texts[b]) <= within + 1e-9]
    group = similar(device, texts, within).group
    assert len(near) > 400 and np.mean([group[a] == group[b] for a, b in near]) >= MIN_RECALL
    component = list(range(len(texts)))
    for _ in range(3):  # families have four members at most
        for a, b in near:
            component[a] = component[b] = min(component[a], component[b])
    assert all(component[row] == component[first] for row, first in enumerate(group.tolist()))  # none too many
    assert (group <= np.arange(len(group))).all()


def test_pairs_at_the_distance_itself_are_found(device: Device) -> None:
    rng = np.random.default_rng(4)
    lines = ["".join(map(chr, rng.integers(0x4E00, 0x9FA5, 12))) for _ in range(3000)]  # 10 shingles
    cut = [line[:9] for line in lines]  # 7 of them: a distance of 0.3, which is not exactly 3 / 10
    group = similar(device, lines + cut, 0.3).group
    found = (group[3000:] == np.arange(3000)).mean()
    assert MIN_RECALL - 4 * (0.001 / 3000) ** 0.5 <= found <= 1
    assert (similar(device, lines + cut, 0.299).group[3000:] == np.arange(3000, 6000)).all()


def test_crowds_of_equal_and_of_similar_captions_are_compared_in_bounded_time(device: Device) -> None:
    """All pairs would be 10^10; every text of a crowd is compared with the next few of its bucket only."""
    texts = [CAT] * 100_000 + [f"一只橘猫坐在窗台上看着外面的小鸟飞过的第{n}张照片" for n in range(20_000)]
    found = similar(device, texts, 0.3)
    assert (found.group[:100_000] == 0).all()
    assert len(np.unique(found.group[100_000:])) < 20


def test_captions_of_another_run_are_compared(recipe_of: Callable[..., Recipe], device: Device, tmp_path: Path) -> None:
    recipe = recipe_of(words="{min: 1}", same=EQUAL, near=SIMILAR)
    first = run_of(tmp_path / "first", recipe, [CAT, DOG, ""], words=[5, 0, 5])
    decide(first, recipe, device)  # DOG is dropped
    texts = [CAT, CATS, DOG, "", CAT + "啊"]
    run = run_of(tmp_path / "run", recipe, texts, words=[5] * 5, first_uid=100)
    both = with_references(recipe, [first.folder])
    assert [c.name for c in both.criteria[3:]] == ["already_kept_same", "already_kept_near"]  # no features
    only = recipe_of(words="{min: 1}", **{c.name: str(c.to_dict()) for c in both.criteria[3:5]})
    assert only.criteria[1].rule == "none of first with equal caption_hash"
    assert only.criteria[2].rule == "none of first with text_clean: Jaccard distance ≤ 0.3"
    decide(run, only, device)
    rows = verdicts_of(run)
    assert [row["dropped_by"] for row in rows] == [
        "already_kept_same", "already_kept_near", None, None, "already_kept_near",
    ]  # fmt: skip
    assert {row["kept_instead"] for row in rows if not row["keep"]} == {f"{1:032x}"}
    expected = [jaccard_distance(CAT, text) for text in texts]
    assert [row["distance"] for row in rows] == [0, pytest.approx(expected[1]), None, None, pytest.approx(expected[4])]


def test_the_most_similar_known_caption_is_named(device: Device) -> None:
    rng = np.random.default_rng(8)
    known = ["".join(map(chr, rng.integers(0x4E00, 0x9FA5, 30))) for _ in range(300)]
    known += [changed(rng, text, 1) for text in known]
    ours = [changed(rng, text, rng.integers(0, 4)) for text in known]
    encoded = pa.array(known + ours, pa.large_string()).dictionary_encode()
    values = encoded.indices.to_numpy()
    nearest, distance = nearest_texts(device, values, encoded.dictionary, len(known), 0.4)
    exact = np.array(
        [[jaccard_distance(text, known[row]) for row in (i % 300, i % 300 + 300)] for i, text in enumerate(ours)]
    )
    best = exact.min(1)
    near = best <= 0.4
    assert near.sum() > 400 and ((nearest >= 0) == near).mean() > 0.995
    hit = nearest >= 0
    assert np.isclose(distance[hit], best[hit]).mean() > 0.99 and np.isinf(distance[~hit]).all()
    equal, _ = nearest_texts(device, values, encoded.dictionary, len(known), 0)
    assert [known[row] if row >= 0 else None for row in equal] == [text if text in known else None for text in ours]


def test_merging_compares_the_captions_that_each_run_kept(
    recipe_of: Callable[..., Recipe], device: Device, tmp_path: Path
) -> None:
    recipe = recipe_of(same=EQUAL, near=SIMILAR, redundancy="{within: 0.01, keep: first}")
    texts, degrees = [CAT, DOG, CAT, "", CATS, DOG, "", "夜晚的城市"], [0, 30, 60, 90, 120, 150, 180, 31]
    whole = run_of(tmp_path / "whole", recipe, texts, degrees=degrees)
    decide(whole, recipe, device)
    parts = []
    for number, part in enumerate((slice(0, 3), slice(3, 6), slice(6, 8))):
        folder = tmp_path / f"part{number}"
        parts.append(run_of(folder, recipe, texts[part], degrees=degrees[part], first_uid=1 + part.start))
        decide(parts[-1], recipe, device)
    merge([part.folder for part in parts[:2]], tmp_path / "all", device)
    merged, funnel = merge([part.folder for part in parts], tmp_path / "all", device)
    assert funnel.kept == 4
    wanted = ("dropped_by", "kept_instead", "distance", "keep")
    found, expected = ([{name: row[name] for name in wanted} for row in verdicts_of(run)] for run in (merged, whole))
    assert found == expected
    assert [row["dropped_by"] for row in found] == [None, None, "same", None, "near", "same", None, "redundancy"]


def test_a_merge_that_drops_other_earlier_rows_compares_all_again(
    recipe_of: Callable[..., Recipe], device: Device, tmp_path: Path
) -> None:
    recipe = recipe_of(
        same='{column: caption_hash, within: 0, "keep": "highest:width"}', redundancy="{within: 0.01, keep: first}"
    )
    first = run_of(tmp_path / "first", recipe, [CAT, DOG], degrees=[0, 90], width=[1, 1])
    second = run_of(tmp_path / "second", recipe, [CAT, "夜"], degrees=[180, 1], width=[2, 1], first_uid=10)
    for run in (first, second):
        decide(run, recipe, device)
    merge([first.folder], tmp_path / "all", device)
    merged, _ = merge([first.folder, second.folder], tmp_path / "all", device)
    # The first CAT gives way to the wider one, so the picture beside it stays.
    assert [row["dropped_by"] for row in verdicts_of(merged)] == ["same", None, None, None]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            "{column: text_clean, within: 0.6}",
            "'within' of text_clean is a Jaccard distance from 0 (equal) to 0.5, not 0.6",
        ),
        ("{column: caption_hash, within: 0.2}", "'within' of caption_hash is 0: its values are equal or not, not 0.2"),
        ("{column: text_clean, within: 0.2, keep: centroid}", "'keep' is first or highest:<column>"),
        ("{column: caption_hash, within: 0, keep_at_most: 0}", "'keep_at_most' is a number of rows from 1, not 0"),
        ("{column: caption_hash, within: 0, keep_at_most: 1.5}", "keep_at_most must be a whole number, not 1.5"),
        ("{column: text_clean, max: 3}", "compare it with 'within', for example {column: text_clean, within: 0.2}"),
        ("{column: perceptual_hash, within: 4, not_near: x}", "'within' of perceptual_hash is 0"),
    ],
)
def test_wrong_criteria_of_captions_are_refused(recipe_of: Callable[..., Recipe], keys: str, message: str) -> None:
    with pytest.raises(DanqingError) as caught:
        recipe_of(near=keys)
    assert message in str(caught.value)


def test_a_curated_crawl_loses_repeated_captions_and_explain_names_the_kept_row(
    make_shard: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = [CAT, CAT.replace("鸟", "鳥").replace("过", "過"), f"  {CAT}😀", CATS, DOG, "😀"]
    members = {f"{n}.jpg": picture(n, (64, 48)) for n in range(6)} | {f"{n}.txt": t for n, t in enumerate(captions)}
    path = tmp_path / "captions.yaml"
    path.write_text(f"recipe: captions\ncriteria:\n  same: {EQUAL}\n  near: {SIMILAR}\n")
    run, _, _ = curate([str(make_shard(members))], tmp_path / "out", load_recipe(path), Settings())
    assert [row["dropped_by"] for row in verdicts_of(run)] == [None, "same", "same", "near", None, None]
    stored = run_hashes(run)
    assert stored[0] == stored[1] == stored[2] != stored[3] and len(stored[0]) == 32 and stored[5] == ""
    assert main(["explain", str(run.folder), "3"]) == 0
    printed = " ".join(capsys.readouterr().out.split())  # lines may be wrapped
    assert "kept instead: 00000 key 0" in printed and "distance 0.1" in printed


def test_groups_of_different_criteria_have_different_numbers(
    recipe_of: Callable[..., Recipe], device: Device, tmp_path: Path
) -> None:
    recipe = recipe_of(same="{column: caption_hash, within: 0, keep_at_most: 2}", redundancy="{within: 0.01}")
    run = run_of(tmp_path / "run", recipe, [CAT, CAT, DOG, CATS], degrees=[0, 90, 1, 180])
    decide(run, recipe, device)
    groups = [row["group"] for row in verdicts_of(run)]
    assert groups[0] == groups[2] != groups[1] and groups[3] == -1 and min(groups[:3]) == 0
