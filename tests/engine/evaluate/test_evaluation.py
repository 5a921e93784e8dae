"""Rows, ranks and averages of towers that know colours; evaluation.json and comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import Silent
from danqing.engine.evaluate import evaluation
from danqing.engine.evaluate.evaluation import best_ranks, class_vectors, evaluate
from danqing.engine.evaluate.results import Evaluation, compare, read_evaluation, write_evaluations
from danqing.engine.evaluate.suites import open_suite
from danqing.engine.evaluate.tables import averages, known, templates_for
from tests.engine.evaluate.conftest import COLOURS, ColourTowers, chinese_clip, coloured, elevater


class WrongTowers(ColourTowers):
    """Takes every text for green."""

    name = "wrong"

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return super().texts(["绿"] * len(texts))


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def say(self, line: str) -> None:
        self.lines.append(line)

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *problem: object) -> None: ...


def of(towers: ColourTowers, folder: Path) -> Evaluation:
    return evaluate(towers, open_suite(str(folder)))


@pytest.mark.parametrize("block", [1, 1 << 24])
def test_ranks_in_blocks_are_those_of_a_stable_sort(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BLOCK_SIMILARITIES", block)
    rng = np.random.default_rng(0)
    queries, gallery = rng.integers(-2, 3, (30, 2)).astype(np.float32), rng.integers(-2, 3, (40, 2)).astype(np.float32)
    right = np.unique(rng.integers(0, (29, 40), (60, 2)), axis=0)  # the last query has none
    found = best_ranks(queries, gallery, rng.permutation(right))
    for query, rank in enumerate(found):
        answers = set(right[right[:, 0] == query, 1].tolist())
        order = np.argsort(-(gallery @ queries[query]), kind="stable").tolist()
        assert rank == next((place for place, item in enumerate(order) if item in answers), -1)
    assert found[29] == -1


def test_a_broken_picture_is_counted_and_left_out(tmp_path: Path) -> None:
    folder = elevater(tmp_path / "dtd")
    (folder / "test" / "001" / "2.jpg").write_bytes(b"no picture")
    lines: list[str] = []
    found = evaluate(ColourTowers(), open_suite(str(folder)), progress=lambda *label: Listening(lines))
    assert (found.rows[0].pictures, len(found.rows[0].broken)) == (6, 1)
    assert found.rows[0].metrics == of(ColourTowers(), elevater(tmp_path / "whole")).rows[0].metrics
    assert len(lines) == 1 and "dtd: left out, as they cannot be decoded: 1 (" in lines[0] and "001/2.jpg" in lines[0]
    for file in folder.rglob("*.png"):
        file.unlink()
    with pytest.raises(DanqingError, match=r"dtd: no picture can be decoded; the first is .*001/2\.jpg"):
        of(ColourTowers(), folder)


def test_folders_that_are_no_data_sets_are_named(tmp_path: Path) -> None:
    elevater(tmp_path / "suite" / "dtd")
    elevater(tmp_path / "suite" / "mnist")
    (tmp_path / "suite" / "notes").mkdir()
    lines: list[str] = []
    evaluate(ColourTowers(), open_suite(str(tmp_path / "suite")), progress=lambda *label: Listening(lines))
    assert lines == ["suite: no data sets of a known layout: notes"]


def test_a_text_of_a_broken_picture_is_left_out(tmp_path: Path) -> None:
    folder = chinese_clip(tmp_path / "muge", [("红色", [1]), ("绿色", [2])])
    table = folder / "test_imgs.tsv"
    table.write_text("".join(["1\tAAAA\n", *table.read_text().splitlines(keepends=True)[1:]]))
    (row,) = of(ColourTowers(), folder).rows
    assert (row.pictures, row.texts, len(row.broken)) == (2, 1, 1)


def test_several_pictures_are_right_for_a_text_and_a_text_is_a_hit_if_any_is_found(tmp_path: Path) -> None:
    folder = chinese_clip(tmp_path / "muge", [("红色", [1]), ("绿色", [1, 2, 3])])
    values = of(ColourTowers(), folder).rows[0].metrics
    assert values["image_retrieval_recall@1"] == 1
    assert values["text_retrieval_recall@1"] == pytest.approx(2 / 3)  # both texts are as far from blue; red is first


def test_limit_takes_the_first_pictures_of_every_class(tmp_path: Path) -> None:
    (row,) = evaluate(ColourTowers(), open_suite(str(elevater(tmp_path / "dtd"))), limit=3).rows
    assert row.outcomes["labels"].tolist() == [0, 1, 2]


def test_a_class_is_the_mean_of_its_templates() -> None:
    found = class_vectors(ColourTowers(), ["红", "绿"], ["{c}", "{c}和蓝"])
    both = ColourTowers().texts(["红", "红和蓝"]).mean(axis=0)
    assert found[0] == pytest.approx(both / np.linalg.norm(both))


def test_given_templates_replace_the_others(tmp_path: Path) -> None:
    asked: list[str] = []

    class Recording(ColourTowers):
        def texts(self, texts: Sequence[str]) -> np.ndarray:
            asked.extend(texts)
            return super().texts(texts)

    suite = open_suite(str(elevater(tmp_path / "dtd")))
    evaluate(Recording(), suite, templates=["一片{c}", "{c}"])
    assert asked == ["一片红色", "红色", "一片绿色", "绿色", "一片蓝色", "蓝色"]
    asked.clear()
    evaluate(Recording(), suite)
    assert "红色的纹理" in asked  # of the topic of dtd


def test_json_has_the_rows_of_clip_benchmark_and_is_read_back(tmp_path: Path) -> None:
    found = of(ColourTowers(), elevater(tmp_path / "dtd"))
    write_evaluations(tmp_path / "evaluation.json", [found])
    row = json.loads((tmp_path / "evaluation.json").read_text())["rows"][0]
    assert {name: row[name] for name in ("dataset", "model", "task", "language")} == {
        "dataset": "dtd", "model": "colours", "task": "zeroshot_classification", "language": "zh",
    }  # fmt: skip
    assert row["metrics"]["acc1"] == pytest.approx(5 / 6)
    back = read_evaluation(tmp_path / "evaluation.json")
    assert back.rows[0].metrics == found.rows[0].metrics
    assert compare([found], back).largest_drop == (0, "no metric")
    text = (tmp_path / "evaluation.json").read_text()
    (tmp_path / "evaluation.json").write_text(text.replace('"acc1": ', '"acc1": "0.5", "acc": ', 1))
    with pytest.raises(DanqingError, match=r"evaluation\.json: .*the metric acc1 is '0\.5'.*write it with"):
        read_evaluation(tmp_path / "evaluation.json")
    (tmp_path / "evaluation.json").write_text('{"rows": [{}]}')
    with pytest.raises(DanqingError, match=r"evaluation\.json: is no evaluation with its outcomes .*write it with"):
        read_evaluation(tmp_path / "evaluation.json")


def test_a_comparison_needs_the_same_pictures(tmp_path: Path) -> None:
    folder = elevater(tmp_path / "dtd")
    right, wrong = of(ColourTowers(), folder), of(WrongTowers(), folder)
    compared = compare([right, wrong])
    assert compared.differences[0] is None and compared.differences[1] is not None
    assert compared.differences[1]["dtd"]["acc1"].difference == pytest.approx(-1 / 2)
    assert compared.largest_drop == (pytest.approx(1 / 2), "dtd acc1")
    assert compare([of(ColourTowers(), folder)], right).largest_drop == (0, "no metric")  # equal, and not the same
    (folder / "test" / "000" / "0.png").write_bytes(coloured("红", side=9))
    with pytest.raises(DanqingError, match="dtd: colours was evaluated on other pictures or texts"):
        of(ColourTowers(), folder).against(right)
    with pytest.raises(DanqingError, match="nothing to compare"):
        of(ColourTowers(), elevater(tmp_path / "mnist")).against(right)


FOLDERS = (
    "caltech-101", "cifar-10", "country211", "dtd", "food-101", "mnist", "oxford-flower-102", "oxford-iiit-pets",
    "resisc45_clip", "stanford-cars", "hateful-memes", "voc-2007-classification",
)  # fmt: skip
"""As Chinese-CLIP's ELEVATER_all.zip names the twelve sets."""


def test_the_papers_averages_are_reproduced() -> None:
    """Its figures of the twelve sets have its averages as their mean."""
    for model, average in (
        ("SigLIP2-B/32", 57.8), ("DanQing-B/32", 65.4), ("SigLIP2-L/16", 65.2), ("DanQing-L/16", 72.9)
    ):  # fmt: skip
        rows = [(folder, {"acc1": entry.figures[model] / 100}) for folder in FOLDERS if (entry := known(folder))]
        assert len(rows) == 12
        mean, elevater_mean = averages(rows)
        assert mean.value is not None and round(100 * mean.value, 1) == average == mean.figures[model]
        assert elevater_mean.value is None  # no mean per class recall among the rows
    assert averages(rows[:11])[0].value is None and averages(rows[:11])[0].missing == ("VOC2007",)


def test_averages_of_retrieval_are_means_of_all_recalls() -> None:
    rows = [("Flickr30k-CN", {"mean_recall": 0.7}), ("COCO-CN", {"mean_recall": 0.8}), ("MUGE", {"mean_recall": 0.9})]
    (short,) = averages(rows)
    assert short.value == pytest.approx(0.8) and short.figures["DanQing-B/32"] == 76.7
    assert averages([("own", {"mean_recall": 1.0})]) == []


def test_every_set_has_templates_with_a_place_for_the_name() -> None:
    for folder in (*FOLDERS, "wds_vtab-flowers", "fashion-mnist", "own"):
        for chinese in (True, False):
            templates = templates_for(folder, chinese)
            assert len(set(templates)) == len(templates) >= 3 and all("{c}" in template for template in templates)
    assert len(templates_for("own", True)) == 8
    assert templates_for("food-101", True) != templates_for("own", True)
    assert set(COLOURS) == {"红", "绿", "蓝"}
