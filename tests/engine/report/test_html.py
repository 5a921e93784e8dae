"""report.html and report.json of small runs: the numbers are those of `decide`."""

from __future__ import annotations

import base64
import doctest
import io
import json
import math
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from danqing.engine.cli.main import main
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.escape import UNSAFE
from danqing.engine.decide.funnel import Funnel
from danqing.engine.decide.scores import read_scores
from danqing.engine.decide.verdicts import walk
from danqing.engine.phases import curate, decide_run
from danqing.engine.recipe.reading import load_recipe, recipe_from_dict
from danqing.engine.report import characteristics, figures, galleries, html, numbers, rows, tiles, view
from danqing.engine.report.figures import Figure, Scale
from danqing.engine.report.page import json_in_html, write_page
from danqing.engine.report.paper import COLLECTED, LEFT, paper_shares
from danqing.engine.report.rows import draw_sample
from danqing.engine.report.tiles import thumbnail
from danqing.engine.report.view import View
from danqing.engine.report.word_cloud import CLOUD_HEIGHT, CLOUD_WIDTH, word_cloud
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.sources import find_shards, open_shard
from danqing.engine.stages.columns import known_columns
from danqing.engine.write.output import read_verdicts
from tests.conftest import RECIPE_WITHOUT_NETWORKS, picture
from tests.engine.score.test_run import GOOD, samples

RECIPE = (
    RECIPE_WITHOUT_NETWORKS
    + """
  same_bytes: {column: sha256, within: 0}
  image_entropy: {min: 1}
"""
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with every kind of failure, a duplicate, and a criterion after redundancy."""
    folder = tmp_path_factory.mktemp("report")
    others = {
        "short.jpg": picture(90), "short.txt": "小猫",
        "none.txt": GOOD,
        "html.jpg": b"<html>gone</html>", "html.txt": GOOD,
        "cut.jpg": picture(91)[:900], "cut.txt": GOOD,
        "wide.jpg": picture(92, (400, 100)), "wide.txt": GOOD,
        "twin.jpg": picture(11), "twin.txt": f"{GOOD}，与另一张相同",
    }  # fmt: skip
    for number, members in enumerate((samples(0, 5), samples(10, 4) | others)):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for name, content in members.items():
                content = json.dumps(content) if isinstance(content, dict) else content
                data = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (folder / "recipe.yaml").write_text(RECIPE)
    inputs = [str(folder / "0.tar"), str(folder / "1.tar")]
    return curate(inputs, folder / "out", load_recipe(folder / "recipe.yaml"), Settings())[0]


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    """A copy of the run, for tests that decide anew."""
    shutil.copytree(original.folder, tmp_path / "out")
    return Run.open(tmp_path / "out")


def read_numbers(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.folder / "report.json").read_text(encoding="utf-8"))
    return content


def rows_between(population: dict[str, Any], bounds: dict[str, int]) -> int:
    """What templates/script.js computes."""
    low, high = 0, population["total"]
    for key, index in bounds.items():
        count = population["below" if key in ("min", "below") else "up_to"][index]
        low, high = (low, count) if key in ("max", "below") else (count, high)
    return max(high - low, 0)


def test_the_numbers_are_the_runs_own(original: Run) -> None:
    run = original
    found = read_numbers(run)
    funnel = json.loads((run.folder / "funnel.json").read_text())
    assert found["funnel"] == funnel and "same_bytes" in {s["criterion"] for s in funnel["steps"] if s["dropped"]}
    scores = [pq.read_table(run.scores_path(s.number)) for s in run.shards]
    verdicts = [row for s in run.shards for row in pq.read_table(run.verdicts_path(s.number)).to_pylist()]
    errors = [error for table in scores for error in table["error"].drop_null().to_pylist()]
    assert sum(found["errors"].values()) == len(errors) > 0
    dropped = {step["criterion"]: step["dropped"] for step in funnel["steps"]}
    words = found["criteria"]["words"]
    values = [value for table in scores for value in table["words"].drop_null().to_pylist()]
    assert sum(map(sum, (words["kept"], words["dropped"], words["other"]))) == len(values)
    assert sum(words["kept"]) == funnel["kept"] and sum(words["dropped"]) == dropped["words"]
    assert found["figures"]["words"]["all"] and found["sample"] == {"rows": len(verdicts), "of": len(verdicts)}
    assert sum(found["criteria"]["same_bytes"]["dropped"]) == dropped["same_bytes"] == 1


def test_what_if_counts_as_decide_does(original: Run, device: Device) -> None:
    content, tried, refused = read_numbers(original), 0, 0
    run, kept, criteria, recipe = original, content["funnel"]["kept"], content["criteria"], original.manifest["recipe"]
    for name in ("words", "aspect_ratio", "laplacian_variance", "unsafe_text", "image_entropy"):
        content = criteria[name]["what_if"]
        start = rows_between(content["about"], content["bounds"])
        assert start == kept
        for key in content["bounds"]:
            for index in np.linspace(0, len(content["values"]) - 1, 5).astype(int).tolist():
                bounds = content["bounds"] | {key: index}
                setting = f"{name}.{key}={content['values'][index]!r}"
                try:
                    moved = recipe_from_dict(recipe, "run.json", [setting], known_columns(), [*run.recipe.models])
                except DanqingError:  # bounds between which there is no value
                    continue
                unknown = rows_between(content["unknown"], bounds)
                try:
                    verdicts = walk(read_scores(run, moved), moved, device)
                except DanqingError as problem:
                    assert unknown and "Score again" in str(problem)
                    refused += 1
                    continue
                tried += 1
                assert not unknown, setting
                funnel = Funnel.count(moved, verdicts.dropped_by)
                before = next(line for line in funnel.lines if line.criterion == "same_bytes")
                if name != "image_entropy":
                    assert rows_between(content["exact"], bounds) == before.left + before.dropped, setting
                else:
                    assert content["exact"] is None
                assert abs(rows_between(content["about"], bounds) - funnel.kept) <= 1, setting
    assert tried > 15 and refused > 0


def test_several_thresholds_are_counted_together_as_decide_does(original: Run, device: Device) -> None:
    text = (original.folder / "report.html").read_text(encoding="utf-8")
    page = json.loads(re.findall(r'id="what-if">(.*?)</script>', text)[0])
    names, recipe = page["joint"]["criteria"], original.manifest["recipe"]
    assert {"words", "aspect_ratio", "laplacian_variance"} <= set(names) and "image_entropy" not in names
    codes = np.frombuffer(base64.b64decode(page["joint"]["codes"]), "<u2").reshape(len(names), -1).astype(int)
    found = []
    for shares in ((0.9, 0.5), (0.4, 0.9), (0.2, 0.1)):  # of the candidates
        changed = {}
        for (name, key), share in zip((("words", "max"), ("laplacian_variance", "min")), shares, strict=True):
            content = page["criteria"][name]
            changed[name] = (key, int(share * (len(content["values"]) - 1)), content["values"])
        passes = np.ones(codes.shape[1], bool)
        for name, row in zip(names, codes, strict=True):  # what templates/script.js computes
            bounds = dict(page["criteria"][name]["bounds"])
            if name in changed:
                bounds[changed[name][0]] = changed[name][1]
            for key, index in bounds.items():
                values = (row + (key in ("min", "below"))) // 2
                passes &= values <= index if key in ("max", "below") else values > index
        settings = [f"{name}.{key}={values[index]!r}" for name, (key, index, values) in changed.items()]
        moved = recipe_from_dict(recipe, "run.json", settings, known_columns(), [*original.recipe.models])
        try:
            funnel = Funnel.count(moved, walk(read_scores(original, moved), moved, device).dropped_by)
        except DanqingError:  # a gate dropped rows that pass now
            continue
        before = next(line for line in funnel.lines if line.criterion == "same_bytes")
        assert passes.sum() == before.left + before.dropped, settings
        found.append(int(passes.sum()))
    assert len(set(found)) > 1


def test_equal_runs_have_equal_pages_and_no_hidden_characters(run: Run, tmp_path: Path) -> None:
    page, content = ((run.folder / name).read_bytes() for name in ("report.html", "report.json"))
    shutil.copytree(run.folder, tmp_path / "copy" / "out")
    assert main(["report", str(tmp_path / "copy" / "out"), "--quiet"]) == 0
    again = tmp_path / "copy" / "out"
    assert (again / "report.html").read_bytes() == page and (again / "report.json").read_bytes() == content
    assert b" at 0x" not in page and str(tmp_path / "out").encode() not in page
    assert b"://" not in page.replace(b"http://www.w3.org/2000/svg", b"")


def test_galleries_hold_the_nearest_pairs_and_the_one_kept_instead(original: Run) -> None:
    run = original
    seen = View(run, read_verdicts(run))
    seen.count([seen])
    at = next(at for at, criterion in enumerate(seen.recipe.criteria) if criterion.name == "words")
    shown = seen.shown[at]
    words = {
        (s.number, row): value
        for s in run.shards
        for row, value in enumerate(pq.read_table(run.scores_path(s.number))["words"].to_pylist())
    }
    verdicts = {
        (s.number, row): reason
        for s in run.shards
        for row, reason in enumerate(pq.read_table(run.verdicts_path(s.number))["dropped_by"].to_pylist())
    }
    kept = sorted(min(abs(words[p] - 5), abs(words[p] - 60)) for p, reason in verdicts.items() if reason is None)
    assert [min(abs(words[p] - 5), abs(words[p] - 60)) for p in shown["just inside"]] == kept[: galleries.SHOWN]
    assert {verdicts[p] for p in shown["just outside"]} == {"words"}
    assert seen.kept and len(seen.kept) <= galleries.KEPT_SHOWN
    duplicates = next(at for at, criterion in enumerate(seen.recipe.criteria) if criterion.name == "same_bytes")
    (twin,) = seen.tiles.tiles(seen.shown[duplicates]["smallest distances"], seen.recipe.criteria[duplicates])
    assert twin.instead and twin.instead.key == "00011" and twin.instead.source == twin.source != ""


def test_two_runs_are_shown_side_by_side(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "other")
    stricter = recipe_from_dict(run.manifest["recipe"], "", ["words.max=9"], known_columns(), [])
    decide_run(Run.open(tmp_path / "other"), stricter)
    out = tmp_path / "compared"
    options = ["-o", str(out), "--figures", str(out / "figures"), "--quiet"]
    assert main(["report", str(run.folder), str(tmp_path / "other"), *options]) == 0
    found = json.loads((out / "comparison.json").read_text())["runs"]
    assert [part["name"] for part in found] == ["out", "other"]
    assert found[0]["criteria"]["words"]["edges"] == found[1]["criteria"]["words"]["edges"]
    assert found[0]["funnel"]["kept"] > found[1]["funnel"]["kept"]
    names = {path.name for path in (out / "figures").iterdir()}
    assert {"funnel-a.svg", "funnel-b.svg", "criterion-words-a.svg", "word-cloud-a.svg"} <= names
    drawing = (out / "figures" / "words-a.svg").read_text(encoding="utf-8")
    assert drawing.startswith("<?xml") and "<style>" in drawing and drawing.rstrip().endswith("</svg>")


def test_rows_are_read_by_number(original: Run, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(picture(number))
    folder = find_shards([str(tmp_path / "pictures")])[0]
    for shard in (*original.shards, folder):
        source = open_shard(shard, original.layout)
        every = list(source)
        for rows_wanted in ([], [1, 3], [0, len(every) - 1], [len(every) + 5]):
            found = dict(source.samples_at(rows_wanted))
            assert list(found) == [row for row in rows_wanted if row < len(every)]
            assert all(sample.image == every[row].image for row, sample in found.items())


def test_a_run_whose_input_is_gone_still_has_a_report(run: Run) -> None:
    run.manifest["shards"] = [shard | {"path": str(run.folder / "gone.tar")} for shard in run.manifest["shards"]]
    page = html.write_report(run).read_text(encoding="utf-8")
    assert "not in the input any more" in page and "data:image/jpeg" not in page


def test_a_report_after_decide_and_stale_ones(run: Run, tmp_path: Path) -> None:
    assert main(["decide", str(run.folder), "--set", "words.max=9", "--report", "--quiet"]) == 0
    assert read_numbers(run)["funnel"] == json.loads((run.folder / "funnel.json").read_text())
    assert "--set words.max=9" in json.loads(page_data(run))["given"]
    assert main(["decide", str(run.folder), "--set", "words.max=8", "--quiet"]) == 0
    assert not (run.folder / "report.html").exists() and not (run.folder / "report.json").exists()


def page_data(run: Run) -> str:
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    return re.findall(r'<script type="application/json" id="what-if">(.*?)</script>', page, re.DOTALL)[0]


def test_a_sample_is_about_as_large_as_asked_for(run: Run) -> None:
    recipe = run.recipe
    all_rows = read_numbers(run)["funnel"]["collected"]
    sizes = [len(draw_sample(run, recipe, all_rows, size).table) for size in (1, all_rows // 2, all_rows)]
    assert sizes[0] < sizes[1] < sizes[2] == all_rows


def test_counts_of_a_sample_of_groups_say_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "MAX_GROUPS", 0.9 * Funnel.of(run).collected)
    page = html.write_report(run).read_text(encoding="utf-8")
    assert "90.00% of the groups, chosen by hash," in page and "in a sample of 90.00% of the groups: 1 group," in page


def test_texts_are_escaped(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "profile.html", "<b>", summary=["<i>\x1b\u202e", "一只猫"], columns=[], rows=[],
               legend="", figures=[], version="1")  # fmt: skip
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<title>&lt;b&gt;</title>" in page and "&lt;i&gt;\\x1b\\u202e" in page and not UNSAFE.search(page)
    assert json.loads(text := json_in_html({"a": "</script>\u2028\x7f"})) == {"a": "</script>\u2028\x7f"}
    assert "<" not in text and not UNSAFE.search(text)
    html.write_figures(tmp_path, [Figure("figure", "", [figures.svg(1, 1, "a\x0b\u202e<", [])])])
    drawing = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert "a\\x0b\\u202e&lt;" in drawing and not UNSAFE.search(drawing)


def test_pictures_with_too_many_pixels_have_no_thumbnail() -> None:
    assert thumbnail(picture(1), None, 160 * 120)[0].startswith("data:image/jpeg;base64,")
    assert thumbnail(picture(1), None, 160 * 120 - 1) == ("", "160×120 pixels, more than --max-pixels")


def test_words_of_a_cloud_do_not_overlap() -> None:
    words = [(f"词{'语' * (n % 3)}{n}", 90 - n) for n in range(60)]
    pattern = r'<text x="([\d.]+)" y="([\d.]+)" font-size="([\d.]+)".*?</title>(.*?)</text>'
    found = re.findall(pattern, word_cloud("", words))
    boxes = []
    for x, y, size, word in found:
        half, pixels = figures.advance(word) * float(size) / 2, float(size)
        boxes.append((float(x) - half, float(x) + half, float(y) - 0.85 * pixels, float(y) + 0.15 * pixels))
    assert len(boxes) > 40
    for at, (left, right, top, bottom) in enumerate(boxes):
        assert left >= 0 and right <= CLOUD_WIDTH and top >= 0 and bottom <= CLOUD_HEIGHT
        assert not any(left < r and x < right and top < b and t < bottom for x, r, t, b in boxes[:at])


def test_axes_have_round_ticks() -> None:
    assert np.allclose(Scale(0, 97).ticks(), [0, 20, 40, 60, 80])
    assert Scale(1, 1e6, log=True).ticks() == [1, 100, 1e4, 1e6]
    assert Scale(-0.5, 1.5, whole=True).ticks() == [0, 1]
    scale, edges = figures.choose_scale(np.array([0.0, 1, 2, 3]), [5], integers=True)
    assert edges.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5] and scale.at(5.5) == 1
    scale, edges = figures.choose_scale(np.geomspace(1, 1e6, 1000), [1000])
    assert scale.log and math.isclose(scale.at(1000), 0.5, abs_tol=0.05)


def test_the_papers_shares_belong_to_its_own_steps() -> None:
    recipe = load_recipe("danqing")
    shares = paper_shares(Funnel.count(recipe, np.full(1, -1)))
    assert shares.keys() == LEFT.keys() and shares["unsafe_text"][1] == pytest.approx(0.3063, abs=1e-4)
    assert shares["cross_batch_redundancy"][0] == pytest.approx(99_892_381 / COLLECTED)
    assert shares["redundancy"][1] == pytest.approx(0.4120, abs=1e-4)
    assert paper_shares(Funnel("x", 1, ())) == {}


@pytest.mark.parametrize("module", [characteristics, figures, galleries, html, numbers, rows, tiles, view])
def test_examples_run(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
