"""`danqing recaption` against a server that plays faults: files, resumption, WRITE, the report."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from danqing.engine import phases
from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import silent
from danqing.engine.phases import curate, decide_run, recaption_run, write_run
from danqing.engine.recaption import recaptioning
from danqing.engine.recaption.ledger import RecaptionLedger
from danqing.engine.recaption.metrics import AskingMetrics
from danqing.engine.recaption.prompts import Prompt
from danqing.engine.recaption.recaptioning import Asking, KeptRow
from danqing.engine.recipe.reading import load_recipe
from danqing.engine.report.html import write_report
from danqing.engine.run.folder import Run, finished_work
from danqing.engine.run.part import TaskPart
from danqing.engine.run.settings import Settings
from danqing.engine.stages.vlm.chat import Question
from danqing.engine.stages.vlm.client import Server, Timing
from danqing.engine.write.output import WriteOptions
from tests.conftest import RECIPE_WITHOUT_NETWORKS, picture
from tests.fault_server import CAPTION, Play, serving

GOOD = "公園的草地上有一隻可愛的小貓在曬太陽"
PROMPT = Prompt("描述", 64)
TEXT = json.loads(CAPTION)["caption"]
HOSTILE = "<script>alert(1)</script>{0}%s"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two shards with 12 and 6 kept rows, and a row without a picture in each."""
    folder = tmp_path_factory.mktemp("recaption")
    for number, count in enumerate((12, 6)):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for row in range(count):
                members = {f"{number}{row:03}.jpg": picture(100 * number + row), f"{number}{row:03}.txt": GOOD.encode()}
                for name, content in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
            info = tarfile.TarInfo(f"{number}999.txt")
            tar.addfile(info, io.BytesIO())
    (folder / "recipe.yaml").write_text(RECIPE_WITHOUT_NETWORKS, encoding="utf-8")
    inputs = [str(folder / "0.tar"), str(folder / "1.tar")]
    return curate(inputs, folder / "out", load_recipe(folder / "recipe.yaml"), Settings(), progress=silent)[0]


@pytest.fixture
def run(original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the run; no report is written, which would take most of the time."""
    monkeypatch.setattr(phases, "write_report", lambda *arguments: None)
    shutil.copytree(original.folder, tmp_path / "out")
    return Run.open(tmp_path / "out")


@pytest.fixture
def play() -> Iterator[Play]:
    with serving(Play()) as playing:
        yield playing


def ask(run: Run, play: Play, prompt: Prompt = PROMPT, again: bool = False, **named: Any) -> None:
    timing = Timing(silence=0.3, first=0.001, longest=0.01, dead=0.6)
    server = Server((play.address,), concurrency=4, timing=timing)
    recaption_run(run, prompt, Settings(vlm=server, **named), again, silent)


def records(run: Run) -> list[dict[str, Any]]:
    return [record for shard in run.shards for record in pq.read_table(run.recaptions_path(shard.number)).to_pylist()]


def test_recaptions_are_stored_measured_written_and_shown(
    run: Run, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "write_report", write_report)
    play.script = ["broken"] * 3 + ["length", "filter", HOSTILE, "公園裡的小貓🐱"]
    ask(run, play)
    found = records(run)
    assert Counter(record["outcome"] for record in found) == run.manifest["recaptioned"]["outcomes"]
    assert run.manifest["recaptioned"]["outcomes"]["success"] >= 14 and len(found) == 18
    assert {"prompt", "prompt_hash", "model", "temperature", "seed", "verdicts"} <= run.manifest["recaptioned"].keys()
    good = next(record for record in found if record["recaption"] == TEXT)
    assert good["recaption_text_clean"] == TEXT and good["recaption_words"] > 5 and good["recaption_fails"] is None
    assert good["finish_reason"] == "stop" and (good["prompt_tokens"], good["completion_tokens"]) == (40, 9)
    converted = next(record for record in found if record["recaption"] == "公園裡的小貓🐱")
    assert converted["recaption_text_clean"] == "公园里的小猫" and converted["recaption_fails"] == "words"
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in page and "<script>alert(1)" not in page and page.count(TEXT) >= 14

    assert all(b"alert" not in post for post in play.posts)  # an answer is in no prompt
    write_run(run, progress=silent)
    table = pq.read_table(run.table_path(0)).to_pylist()
    expected = [r["recaption_text_clean"] if r["outcome"] == "success" else None for r in found]
    assert [record["recaption"] for record in table] == expected
    with tarfile.open(run.tar_path(0)) as tar:
        members = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith("json")]  # type: ignore[arg-type]
    assert [member.get("recaption") for member in members] == expected
    write_run(run, WriteOptions("parquet"), progress=silent)
    assert pq.read_table(run.table_path(0))["recaption"].to_pylist() == expected


def test_the_report_shows_the_gain_in_alignment(run: Run, play: Play) -> None:
    play.script = ["length"]
    ask(run, play)
    for shard in run.shards:
        path = run.recaptions_path(shard.number)
        recaptions, scores = pq.read_table(path), pq.read_table(run.scores_path(shard.number))
        cosine = pa.array([0.75] * len(recaptions), pa.float32())
        pq.write_table(recaptions.append_column("recaption_alignment", cosine), path)
        distance = pa.array([1.0] * (len(scores) - 1) + [None], pa.float32())  # a cosine of 0.5
        pq.write_table(scores.append_column("alignment_distance", distance), run.scores_path(shard.number))
    page = write_report(run, figures=run.folder / "figures").read_text(encoding="utf-8")
    gain = "17 pairs; mean 0.25, from 0.5 to 0.75; the recaption is nearer to the picture in 100.0%"
    assert gain in page and page.count("0.500 → 0.750") == 18
    assert (run.folder / "figures" / "recaption-gain.svg").exists()


def test_a_finished_run_is_not_asked_again(run: Run, play: Play) -> None:
    ask(run, play)
    before = {path: path.read_bytes() for path in (run.folder / "recaptions").iterdir()}
    posts = len(play.posts)
    ask(run, play)
    assert len(play.posts) == posts == 18
    assert before == {path: path.read_bytes() for path in (run.folder / "recaptions").iterdir()}


def test_an_interrupted_run_goes_on_with_the_next_shard(run: Run, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    write = RecaptionLedger._commit

    def killed(ledger: RecaptionLedger, number: int, shard: Any) -> None:
        if number == 1:
            raise KeyboardInterrupt
        write(ledger, number, shard)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RecaptionLedger, "_commit", killed)
        ask(run, play)
    assert run.recaptions_path(0).exists() and not run.recaptions_path(1).exists()
    assert "verdicts" not in run.manifest["recaptioned"]
    state = f"{run.folder} is scored, decided and written; 1 of 2 shards are recaptioned"
    assert finished_work(run.folder) == state
    play.posts.clear()
    ask(Run.open(run.folder), play)
    assert len(play.posts) == 6 and len(records(run)) == 18


def test_a_dead_endpoint_makes_no_errors_of_rows(run: Run, play: Play) -> None:
    play.script, play.always = [CAPTION] * 3, "busy"
    with pytest.raises(DanqingError, match="no endpoint has answered"):
        ask(run, play)
    assert not (run.folder / "recaptions").exists()
    play.always = CAPTION
    ask(run, play)
    assert run.manifest["recaptioned"]["outcomes"] == {"success": 18}


def test_another_question_needs_again(run: Run, play: Play) -> None:
    ask(run, play)
    with pytest.raises(DanqingError, match=r"prompt_hash: \w+ there, \w+ here\n--again asks for all of them anew"):
        ask(run, play, Prompt("别的", 64))
    ask(run, play, Prompt("别的", 64), again=True)
    assert len(play.posts) == 36 and run.manifest["recaptioned"]["prompt"] == "别的"


def test_errors_are_asked_for_again(run: Run, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANQING_VLM_KEY", "sk-secret")
    play.script = ["bad", "bad"]  # the server's message repeats the key
    ask(run, play)
    assert all(b"sk-secret" in post for post in play.posts) and "HTTP 400" in str(records(run))
    assert not any(b"sk-secret" in path.read_bytes() for path in run.folder.rglob("*") if path.is_file())
    assert run.manifest["recaptioned"]["outcomes"] == {"error": 2, "success": 16}
    ask(run, play, again=True)
    assert len(play.posts) == 20 and run.manifest["recaptioned"]["outcomes"] == {"success": 18}


def test_other_verdicts_ask_for_new_pairs_only(run: Run, play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = run.recipe
    rows = pq.read_table(run.scores_path(0), columns=["laplacian_variance"])["laplacian_variance"].to_pylist()
    middle = sorted(row for row in rows if row)[6]
    path = run.folder.parent / "other.yaml"
    path.write_text(RECIPE_WITHOUT_NETWORKS, encoding="utf-8")
    strict = load_recipe(path, [f"laplacian_variance.min={middle}"])
    decide_run(run, strict, progress=silent)
    ask(run, play)
    some = len(play.posts)
    assert 0 < some < 18
    write_run(run, progress=silent)
    assert "recaption" in pq.read_schema(run.table_path(0)).names
    decide_run(run, recipe, progress=silent)
    write_run(run)
    assert "recaption" not in pq.read_schema(run.table_path(0)).names
    assert "`danqing recaption" in capsys.readouterr().err
    ask(run, play)
    assert len(play.posts) == 18
    assert run.table_path(0).exists()  # the shards without recaptions are not stale
    decide_run(run, recipe, progress=silent)
    assert run.table_path(0).exists()
    write_run(run, progress=silent)
    assert pq.read_table(run.table_path(0))["recaption"].null_count == 0


def test_a_decision_that_is_taken_back_has_its_recaptions(
    run: Run, play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = run.recipe
    ask(run, play)
    path = run.folder.parent / "other.yaml"
    path.write_text(RECIPE_WITHOUT_NETWORKS, encoding="utf-8")
    rows = pq.read_table(run.scores_path(0), columns=["laplacian_variance"])["laplacian_variance"].to_pylist()
    decide_run(run, load_recipe(path, [f"laplacian_variance.min={sorted(filter(None, rows))[6]}"]), progress=silent)
    ask(run, play)
    assert 0 < run.manifest["recaptioned"]["outcomes"]["success"] < 18
    decide_run(run, recipe, progress=silent)
    assert run.manifest["recaptioned"]["outcomes"] == {"success": 18}
    write_run(run)
    assert "not for all of its kept pairs" not in capsys.readouterr().err
    assert pq.read_table(run.table_path(0))["recaption"].null_count == 0 and len(play.posts) == 18


def test_a_run_without_recaptions_takes_another_prompt(run: Run, play: Play) -> None:
    play.always = "busy"
    with pytest.raises(DanqingError, match="no endpoint has answered"):
        ask(run, play)
    play.always, play.models = CAPTION, '{"data": [{"id": "a\\u001b[31m"}]}'
    ask(run, play, Prompt("别的", 64))
    assert run.manifest["recaptioned"]["prompt"] == "别的"
    play.models = '{"data": [{"id": "tiny"}]}'
    with pytest.raises(DanqingError, match=r"model: a\\x1b\[31m there, tiny here"):
        ask(run, play, Prompt("别的", 64))


def test_features_that_are_the_embedding_spare_the_image_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = pa.schema([("alignment_distance", pa.float32()), ("words", pa.int32())])
    monkeypatch.setattr(recaptioning, "scores_schema", lambda run, number: schema)
    recipe = load_recipe("embedded")
    stages = [step.stage.name for step in recaptioning._plan(run, recipe)[0].steps]
    assert {"decode", "image embedding", "alignment"} <= {*stages}  # the model has features beside its embedding
    monkeypatch.setattr(recaptioning, "load_card", lambda name: SimpleNamespace(outputs={"embedding": ""}))
    plan, is_given = recaptioning._plan(run, recipe)
    assert is_given and {step.stage.name for step in plan.steps} == {
        "caption", "refine", "tokens", "text embedding", "alignment",
    }  # fmt: skip
    scores = pq.read_table(run.scores_path(0))
    rows = pa.array([-1, *range(len(scores) - 1)], pa.int32())
    pq.write_table(scores.set_column(scores.column_names.index("feature_row"), "feature_row", rows), run.scores_path(0))
    np.save(run.features_path(0), np.eye(len(scores) - 1, dtype=np.float16) * 2)
    found = recaptioning._Features(run).of([KeptRow(0, 3, "", b""), KeptRow(0, 1, "", b"")])
    assert found.dtype == np.float32 and np.argwhere(found == 1).tolist() == [[0, 2], [1, 0]]


def test_metrics_name_outcomes_tokens_and_endpoints(run: Run, play: Play) -> None:
    context: Any = None
    asking, registry = Asking(run, Question("", ""), Server((play.address,)).open(), context), CollectorRegistry()
    registry.register(AskingMetrics(asking))
    asking.outcomes["success"], asking.tokens["completion"] = 3, 40
    text = generate_latest(registry).decode()
    for line in (
        "danqing_vlm_waiting 0.0", 'danqing_vlm_outcomes_total{outcome="success"} 3.0', "danqing_vlm_retries_total 0.0",
        'danqing_vlm_tokens_total{kind="completion"} 40.0', f'danqing_vlm_outstanding{{endpoint="{play.address}"}} 0.0',
    ):  # fmt: skip
        assert line in text


def test_parts_share_the_work(run: Run, play: Play) -> None:
    ask(run, play, part=TaskPart(0, 2))
    assert run.recaptions_path(0).exists() and not run.recaptions_path(1).exists()
    assert "verdicts" not in run.manifest["recaptioned"]
    ask(Run.open(run.folder), play, part=TaskPart(1, 2))
    assert "verdicts" in Run.open(run.folder).manifest["recaptioned"]


def test_the_command_says_what_came_of_it(run: Run, play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["recaption", str(run.folder), "--endpoint", play.address, "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outcomes"] == {"success": 18}
    assert main([*command, "--prompt", "dense"]) == 2
    assert "--again" in capsys.readouterr().err
    key = records(run)[-1]["uid"]
    assert main(["explain", str(run.folder), key]) == 0
    assert TEXT in capsys.readouterr().out
    assert main(["recaption", str(run.folder), "--endpoint", "http://127.0.0.1:9"]) == 2
    assert "cannot be reached" in capsys.readouterr().err
