"""The log as lines of JSON."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from danqing import __version__
from danqing.engine.cli.main import main
from danqing.engine.core.logs import json_lines_on_stderr, log, log_worker_record, records_to, say
from danqing.engine.recipe.reading import Recipe
from danqing.kernels.compiled import _say_waiting
from tests.engine.score.test_run import crawl

__all__ = ["crawl"]


def test_a_shard_is_a_line(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = ["--recipe", str(tmp_path / "plain.yaml"), "--device", "cpu"]
    assert main(["curate", *crawl, "-o", str(tmp_path / "out"), *recipe, "--log-format", "json"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {line["resource"]["service.name"] for line in lines} == {"danqing"}
    note = lines.pop()
    assert note["severity_text"] == "WARNING" and note["body"].startswith("warning: 2 of 17 rows have an error")
    assert all(line["severity_text"] == "INFO" and line["severity_number"] == 9 for line in lines)
    events: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        events.setdefault(line.get("event_name", ""), []).append(line.get("attributes", {}))
    scored = events["danqing.shard.scored"]
    assert {line["danqing.shard"]: (line["danqing.pairs"], line["danqing.errors"]) for line in scored} == {
        "00000": (5, 0), "00001": (9, 2), "00002": (3, 0),
    }  # fmt: skip
    assert all(line["danqing.pairs_per_second"] > 0 and line["danqing.engines"] == {} for line in scored)
    assert sum(line["danqing.pairs"] for line in events["danqing.shard.written"]) == 12
    log = (tmp_path / "out" / "run.log").read_text()
    assert "scored 00001: 9 pairs, 2 errors" in log and "{" not in log


LOG_DURING_A_RUN = """
import os
from pathlib import Path
from danqing.engine.core.logs import json_lines_on_stderr, log
from danqing.engine.run.log import logging_to
with json_lines_on_stderr("1"):
    log.info("before")
    with logging_to(Path("run.log")):
        log.info("during")
        os.write(2, b"codec\\n")
    log.info("after")
"""


def test_lines_go_to_stderr_while_that_of_codecs_goes_to_the_log(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", LOG_DURING_A_RUN], cwd=tmp_path, env={"PYTHONPATH": str(Path.cwd())},
                         capture_output=True, text=True, check=True, timeout=240)  # fmt: skip
    assert [json.loads(line)["body"] for line in run.stderr.splitlines()] == ["before", "during", "after"]
    log = (tmp_path / "run.log").read_text()
    assert "INFO during" in log and "codec" in log and "{" not in log


def test_a_process_that_waits_for_kernels_says_so_in_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    with json_lines_on_stderr("1"):
        _say_waiting("process 1")
    assert json.loads(capsys.readouterr().err)["body"] == "waits for kernels, which process 1 is compiling"
    _say_waiting("process 2")
    assert capsys.readouterr().err == "danqing: waits for kernels, which process 2 is compiling\n"


def test_what_a_worker_says_is_printed_once_by_the_process_that_logs(capsys: pytest.CaptureFixture[str]) -> None:
    sent: list[tuple[int, str, Any]] = []
    with records_to(lambda *record: sent.append(record)):
        say("the engine before it runs instead", logging.WARNING)
        log.info("scored")
    assert capsys.readouterr().err == ""
    with json_lines_on_stderr("1"):
        for record in sent:
            log_worker_record("0 on cpu", *record)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["body"] for line in lines] == [f"{text} (worker 0 on cpu)" for _, text, _ in sent]
    assert lines[0]["severity_text"] == "WARNING" and lines[0]["attributes"] == {"danqing.worker": "0 on cpu"}
    for record in sent:
        log_worker_record("0 on cpu", *record)
    assert capsys.readouterr().err == "danqing: the engine before it runs instead (worker 0 on cpu)\n"


def test_the_error_that_ends_a_command_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path / "none.tar"), "-o", str(tmp_path / "out"), "--log-format", "json"]) == 2
    line, plain = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found["severity_text"] == "ERROR" and "none.tar: no such file" in plain
    assert found["attributes"] == {"exception.type": "DanqingError", "exception.message": plain[9:]}
    assert found["resource"]["service.version"] == __version__
