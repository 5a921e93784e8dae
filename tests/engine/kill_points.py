"""Kills a command before each commit and after the last one, runs it again, and compares with one that was left alone.

    python -m tests.engine.kill_points NAME FOLDER

A commit is the rename of a temporary file (`engine.core.files.commit`), whichever module makes it. A command that is
killed, and the one after it, run in forked processes of one that has run it, so that libraries are imported and kernels
loaded once. Prints one JSON object: the number of commits, and what was different.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.cli.main import main
from danqing.engine.stages.embed import ImageEmbedding
from danqing.trt_models.model_set import ModelSet
from tests.conftest import RECIPE_WITHOUT_NETWORKS
from tests.engine.score.test_run import GOOD

NETWORK = """
recipe: features
models: {image_embedding: efficientnet-lite0-conse}
criteria: {readable: {min: 1}, redundancy: {within: 0.01, keep: first}}
"""
"""The network is replaced by `FirstPixels`."""
COMMANDS: dict[str, tuple[list[str], str]] = {
    "curate": ([], "curate FOLDER/0.tar FOLDER/1.tar -o OUT --recipe FOLDER/features.yaml"),
    "decide": (["score FOLDER/0.tar FOLDER/1.tar -o OUT --recipe FOLDER/plain.yaml"], "decide OUT --set words.max=50"),
    "write": (
        [
            "curate FOLDER/0.tar FOLDER/1.tar -o OUT --recipe FOLDER/plain.yaml --output-format parquet",
            "decide OUT --set words.max=50",
        ],
        "write OUT",
    ),
    "merge": (
        [f"curate FOLDER/{n}.tar -o FOLDER/run{n} --recipe FOLDER/features.yaml" for n in (0, 1)],
        "merge FOLDER/run0 FOLDER/run1 -o OUT",
    ),
    "select": ([], "select FOLDER/urls.parquet -o OUT --recipe FOLDER/plain.yaml"),
}
"""Name → commands that are not killed, and the one that is."""
CHANGING = ("run.json", "run.log")
"""Files with times."""
TIMES = re.compile(rb'<dt>(?:Scored|Time of scoring)</dt><dd>.*?</dd>|"times": \{.*?\}', re.DOTALL)
"""When a run was scored, in report.html and report.json."""


def write_inputs(folder: Path, shards: list[Path]) -> None:
    """Writes recipes and a table of URLs beside two shards."""
    for number, shard in enumerate(shards):
        shard.rename(folder / f"{number}.tar")
    (folder / "plain.yaml").write_text(RECIPE_WITHOUT_NETWORKS)
    (folder / "features.yaml").write_text(NETWORK)
    urls = [f"https://x.example/{number}.jpg" for number in range(5)]
    pq.write_table(pa.table({"url": urls, "caption": [GOOD, "小猫", GOOD, GOOD, ""]}), folder / "urls.parquet")


def kill_everywhere(name: str, folder: Path) -> dict[str, object]:
    """Kills the command at each point. Returns the number of commits, and the points after which outputs differed."""
    before, command = COMMANDS[name]
    start, whole, out = folder / "start" / "OUT", folder / "whole" / "OUT", folder / "killed" / "OUT"
    for step in before:
        assert _run(step, folder, start) == 0, step
    _copy(start, whole)
    assert _run(command, folder, whole) == 0
    expected, differing = tree(whole), []

    def reaches(commit: int, after: bool) -> bool:
        """Whether the command reaches this point; then it is killed there and run again."""
        _copy(start, out)
        killed = _forked(lambda: _run(command, folder, out, commit, after))
        if killed == 0:
            return False
        assert killed == -signal.SIGKILL, killed
        again, found = _forked(lambda: _run(command, folder, out)), tree(out)
        names = {n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n)}
        left = [str(p.relative_to(out)) for p in out.rglob(".*")]
        if again or names or left:
            differing.append([commit, after, again, sorted(names), left])
        return True

    commits = 0
    while reaches(commits + 1, after=False):  # also the point after the commit before
        commits += 1
    assert reaches(commits, after=True)
    return {"commits": commits, "differing": differing}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file that is not hidden, without times."""
    files = {str(p.relative_to(folder)): p for p in folder.rglob("[!.]*") if p.is_file() and p.name not in CHANGING}
    contents = {name: path.read_bytes() for name, path in files.items()}
    return contents | {name: TIMES.sub(b"", contents[name]) for name in contents if Path(name).stem == "report"}


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, target, symlinks=True)
    target.parent.mkdir(exist_ok=True)


def _run(command: str, folder: Path, out: Path, commit: int = 0, after: bool = False) -> int:
    """Runs a command line; kills this process before or after its n-th commit."""
    number, replace = 0, Path.replace

    def replace_or_die(self: Path, target: Path) -> Path:
        nonlocal number
        number += self.name.endswith(".part")
        if number == commit and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = replace(self, target)
        if number == commit and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    if commit:
        Path.replace = replace_or_die  # type: ignore[method-assign, assignment]
    return main([word.replace("FOLDER", str(folder)).replace("OUT", str(out)) for word in command.split()])


def _forked(function: Callable[[], int]) -> int:
    """Runs a function in a copy of this process; returns its result, or minus the signal that ended it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        signal.alarm(240)  # ends this process, also if the process that waits for it was killed
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            status = function()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class FirstPixels:
    """A network whose output is the first pixels."""

    def run(self, pixels: Any) -> dict[str, np.ndarray]:
        rows = np.asarray(pixels, np.float32).reshape(len(pixels), -1)[:, ::997] + 1
        return {"embedding": rows / np.linalg.norm(rows, axis=1, keepdims=True)}


if __name__ == "__main__":
    ModelSet.session = lambda *_: FirstPixels()  # type: ignore[method-assign, assignment, return-value]
    ImageEmbedding.capacity = 64  # type: ignore[method-assign, assignment]
    print(json.dumps(kill_everywhere(sys.argv[1], Path(sys.argv[2]))))
