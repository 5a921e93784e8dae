"""Criteria that ask a vision-language model: recipe, scores, gates, resumption, thresholds."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from danqing.engine.cli.main import main
from danqing.engine.core.columns import TABLE_COLUMNS
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import silent
from danqing.engine.phases import decide_run, score_inputs
from danqing.engine.recipe.plan import decidable
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.stages.columns import known_columns
from danqing.engine.stages.patterns import stages_for
from danqing.engine.stages.vlm import judgment
from danqing.engine.stages.vlm.client import Server, Timing
from danqing.engine.stages.vlm.judgment import value_of
from tests.conftest import picture
from tests.fault_server import Play, serving

ROWS = 12
CRITERIA = """
recipe: asking
criteria:
  downloaded: {column: image_bytes, min: 1}
  watermark: {vlm: {prompt: 图片上有水印吗？, answer: yes-no}, max: 0}
  beauty: {vlm: {prompt: 'How beautiful, 1 to 10?', answer: number}, min: 3}
"""


@pytest.fixture
def play() -> Iterator[Play]:
    with serving(Play(always="judged")) as playing:
        yield playing


def recipe_of(folder: Path, text: str = CRITERIA) -> Recipe:
    path = folder / "asking.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, columns=known_columns())


def shard(folder: Path, metadata: bytes = b"{}") -> str:
    with tarfile.open(folder / "0.tar", "w") as tar:
        for row in range(ROWS):
            members = {"jpg": picture(row, (32, 32)) if row else b"", "txt": b"cat", "json": metadata}
            for name, content in ((f"{row:03}.{kind}", content) for kind, content in members.items()):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(folder / "0.tar")


def score(folder: Path, play: Play, text: str = CRITERIA, metadata: bytes = b"{}") -> Run:
    timing = Timing(silence=0.3, first=0.001, longest=0.01, dead=0.4)
    settings = Settings(vlm=Server((play.address,), concurrency=1, timing=timing))
    recipe = recipe_of(folder, text)
    return score_inputs([shard(folder, metadata)], folder / "out", recipe, settings, progress=silent)[0]


def test_answers_are_scores_that_decide_thresholds(tmp_path: Path, play: Play) -> None:
    play.script = ["Yes.", "没有", "?"]
    run = score(tmp_path, play)
    table = pq.read_table(run.scores_path(0), columns=["watermark", "beauty", "error"]).to_pydict()
    assert table["watermark"] == [None, 1, 0, None, *[0] * 8]  # the row without a picture was not asked about
    assert table["beauty"] == [None] * 2 + [7] + [None] + [7] * 8  # nor was a row that a question has dropped
    assert table["error"][3] == "watermark: the answer is no yes or no: '?'"
    assert len(play.posts) == 11 + 9 and run.manifest["vlm"] == "tiny"
    assert not (run.folder / "answers").exists()
    assert decide_run(run, run.recipe, progress=silent).kept == 9
    assert decide_run(run, load_recipe(tmp_path / "asking.yaml", ["beauty.min=8"]), progress=silent).kept == 0
    other = load_recipe(tmp_path / "asking.yaml", ["beauty.vlm.prompt=别的"])
    with pytest.raises(DanqingError, match=r"beauty: the recipe asks for the answer \(number\) to '别的', the run has"):
        decide_run(run, other, progress=silent)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        *[(text, "yes-no", 1) for text in ("Yes", "**Yes**, there is.", "是。", "是的，有", '{"answer": true}', "有")],
        *[(text, "yes-no", 0) for text in ("No", "NO - none", "否", "没有，很干净", '{"answer": "no"}', "不是。")],
        *[
            (text, "yes-no", None)
            for text in (
                "对不起，我无法回答", "无法判断", "不确定", "Not sure", "非常明显", "没错", "没问题，有水印",
                "没有办法判断", "有没有？", "是否有水印", "No idea", "Yes. No.", "有可能", "No?", '{"answer": "y',
                '{"answer": 1}', "", '{"reason": "yes"}', '{"answer": "yes"} or {"answer": "no"}', "<think>yes", "7",
            )
        ],
        ('{"answer": 7.5}', "number", 7.5), ('好的：\n```json\n{"answer": "8分"}\n```', "number", 8),
        ("8", "number", 8), ("8/10", "number", 8), ("8 out of 10.", "number", 8), ("８分", "number", 8),
        *[
            (text, "number", None)
            for text in (
                "1到10分，我给8分", "On a scale from 1 to 10: 8", "10-point scale, 7", '{"answer": 1e20}', "1e20",
                '{"reason": "2 dogs", "score": 7}', "<think>The picture shows 2 dogs", '{"answer": 1', "7 or 8",
                "12/10", '{"answer": true}', '{"answer": NaN}', '{"answer": [7]}', "no, 7", "9" * 400,
                '{"answer": NUMBER}', '{"answer": 3, "answer": 4}', '{"answer": "7, perhaps 8"}', "7 dogs",
                "[" * 100_000,
            )
        ],
    ],
)  # fmt: skip
def test_an_answer_has_one_plain_value_or_none(text: str, kind: str, value: float | None) -> None:
    assert value_of(text, kind) == value


def test_a_cut_answer_is_an_error_and_a_model_that_never_answers_ends_the_run(
    tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    play.script = ["length", "对不起，我无法回答"]
    errors = pq.read_table(score(tmp_path, play).scores_path(0))["error"].to_pylist()
    assert "watermark: the answer has more than 64 tokens: '{" in errors[1]
    assert errors[2] == "watermark: the answer is no yes or no: '对不起，我无法回答'"
    monkeypatch.setattr(judgment, "MAX_GIVEN_UP", 5)
    play.always = "对不起"
    (tmp_path / "again").mkdir()
    with pytest.raises(DanqingError, match="5 answers one after the other have no value, the last one: watermark: "):
        score(tmp_path / "again", play)


def test_an_interrupted_shard_asks_only_what_it_has_not_asked(tmp_path: Path, play: Play) -> None:
    play.script = ["no"] * 5 + ["busy"] * 1000
    with pytest.raises(DanqingError, match="no endpoint has answered"):
        score(tmp_path, play)
    play.script = []
    play.posts.clear()
    run = score(tmp_path, play)
    assert len(play.posts) == 6 + 11
    assert pq.read_table(run.scores_path(0))["watermark"].to_pylist() == [None, *[0] * 11]


def test_pairs_with_equal_uids_keep_their_own_answers_when_a_shard_is_resumed(tmp_path: Path, play: Play) -> None:
    metadata = b'{"uid": "%032d"}' % 1
    play.script = ["no", "yes", "no"] + ["busy"] * 1000
    with pytest.raises(DanqingError, match="no endpoint has answered"):
        score(tmp_path, play, metadata=metadata)
    play.script = []
    run = score(tmp_path, play, metadata=metadata)
    assert pq.read_table(run.scores_path(0))["watermark"].to_pylist() == [None, 0, 1, *[0] * 9]


def test_a_run_keeps_its_model(tmp_path: Path, play: Play) -> None:
    run = score(tmp_path, play)
    run.scores_path(0).with_name("00001.parquet").write_bytes(run.scores_path(0).read_bytes())
    play.models = '{"data": [{"id": "other"}]}'
    with pytest.raises(DanqingError, match='vlm: "tiny" there, "other" here'):
        score(tmp_path, play)


def test_a_recipe_is_read_back(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    assert [criterion.prompt for criterion in recipe.judgments] == ["图片上有水印吗？", "How beautiful, 1 to 10?"]
    assert recipe.to_dict()["criteria"]["watermark"]["vlm"] == {"prompt": "图片上有水印吗？", "answer": "yes-no"}


def test_tables_of_urls_leave_questions_for_later(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, CRITERIA + "  words: {min: 1}\n")
    assert [c.name for c in decidable(recipe, stages_for(recipe), TABLE_COLUMNS).criteria] == ["words"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("w: {vlm: {prompt: a}, max: 0}", "yaml:4: w: 'vlm' has the keys 'prompt', a text, and 'answer', number"),
        ("w: {vlm: {prompt: a, answer: maybe}, max: 0}", "'answer', number or yes-no"),
        ("w: {vlm: {prompt: a, answer: yes-no}, min: 2}", "w ≥ 2.* drops every pair"),
        ("w: {vlm: a, max: 0}", "asking.yaml:4: w.vlm must be a mapping"),
        ("w: {vlm: {prompt: a, answer: number}}", "give at least one of 'min'"),
        ("words: {vlm: {prompt: a, answer: number}, min: 1}", "'words' is a column of another kind"),
        ("w: {vlm: {prompt: a, answer: number}, within: 1}", "takes no"),
    ],
)  # fmt: skip
def test_wrong_questions_are_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DanqingError, match=message):
        recipe_of(tmp_path, f"recipe: asking\n# a question\ncriteria:\n  {line}\n")


def test_score_needs_an_endpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_of(tmp_path)
    command = ["score", shard(tmp_path), "-o", str(tmp_path / "out"), "--recipe", str(tmp_path / "asking.yaml")]
    assert main(command) == 2
    assert (
        "criterion 'watermark' asks a vision-language model: name its endpoint, --vlm-endpoint"
        in capsys.readouterr().err
    )
    assert main([*command, "--vlm-endpoint", "http://127.0.0.1:9/v1"]) == 2
    assert "cannot be reached (Connection refused)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
