"""The log as lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from danqing import __version__
from danqing.engine.cli.main import main
from danqing.engine.recipe.reading import Recipe
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


def test_the_error_that_ends_a_command_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path / "none.tar"), "-o", str(tmp_path / "out"), "--log-format", "json"]) == 2
    line, plain = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found["severity_text"] == "ERROR" and "none.tar: no such file" in plain
    assert found["attributes"] == {"exception.type": "DanqingError", "exception.message": plain[9:]}
    assert found["resource"]["service.version"] == __version__
