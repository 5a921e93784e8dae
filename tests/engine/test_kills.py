"""A command that is killed at any of its commits gives the same bytes when it is run again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.kill_points import COMMANDS, write_inputs
from tests.engine.score.test_run import samples

COMMITS = {"curate": 16, "decide": 5, "write": 7, "merge": 10, "select": 4}
"""The least number of commits: shards have two files in `scores` and `features`, one in `verdicts`, two in `shards`."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_killed_at_a_commit_can_be_run_again(
    name: str, make_shard: Callable[..., Path], tmp_path: Path
) -> None:
    write_inputs(tmp_path, [make_shard(samples(20 * n, 3), f"shard{n}.tar") for n in (0, 1)])
    command = [sys.executable, "-m", "tests.engine.kill_points", name, str(tmp_path)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=480)
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["commits"] >= COMMITS[name] and not found["differing"]
