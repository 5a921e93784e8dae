from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from danqing import __version__
from danqing.engine.cli.main import main
from danqing.engine.run.folder import RECORDED_PACKAGES, Run
from tests.conftest import RECIPE_WITHOUT_NETWORKS
from tests.engine.score.test_run import samples, tree

Make = Callable[..., Path]


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["--help"], ["curate", "--help"], ["explain", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert __version__ in shown and "words.max=40" in shown and "brace ranges" in shown


def test_bad_input_exits_with_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", str(tmp_path / "none.tar"), "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.strip() == f"danqing: {tmp_path / 'none.tar'}: no such file"
    assert main(["decide", str(tmp_path)]) == 2
    assert not (tmp_path / "out").exists()


def test_the_commands_one_after_the_other(make_shard: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "plain.yaml", str(tmp_path / "out")
    recipe.write_text(RECIPE_WITHOUT_NETWORKS)
    members = samples(0, 3) | {"bad.jpg": b"<html>", "bad.txt": "公园的草地上有一只可爱的小猫"}
    shard = str(make_shard(members))
    assert main(["curate", shard, "-o", out, "--recipe", str(recipe)]) == 0
    assert "4" in capsys.readouterr().out
    assert main(["curate", shard, "-o", out, "--recipe", str(recipe)]) == 0
    assert "already scored" in capsys.readouterr().out
    assert main(["decide", out, "--set", "words.max=6"]) == 0
    assert main(["write", out]) == 0
    capsys.readouterr()
    assert main(["explain", out, "bad"]) == 0
    shown = capsys.readouterr().out
    assert "公园的草地上有一只可爱的小猫" in shown and "dropped here" in shown and "an HTML page" in shown
    assert main(["explain", out, "nobody"]) == 2


WITHOUT_EXTRAS = """
import sys
from danqing.engine.cli.main import main

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in (
            "nvidia.dali", "pandas", "cv2", "torch", "transformers", "tokenizers", "numba.cuda", "cupy", "rmm", "scipy",
            "sklearn", "umap",
        ):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
sys.exit(main())
"""


def test_the_core_runs_without_the_extras(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_EXTRAS, "demo", "-o", str(tmp_path / "demo")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    versions = Run.open(tmp_path / "demo" / "run").manifest["versions"]
    assert {"python", "numpy", "onnxruntime"} <= versions.keys()  # of what is there, none of what is not
    assert "onnxruntime-gpu" in RECORDED_PACKAGES and "onnxruntime-gpu" not in versions


def test_a_killed_run_leaves_whole_files_and_goes_on(make_shard: Make, tmp_path: Path) -> None:
    recipe, out, whole = tmp_path / "plain.yaml", tmp_path / "out", tmp_path / "whole"
    recipe.write_text(RECIPE_WITHOUT_NETWORKS)
    shards = [str(make_shard(samples(100 * i, 100), f"{i:05d}.tar")) for i in range(6)]
    command = [sys.executable, "-m", "danqing.engine.cli.main", "curate", *shards, "--recipe", str(recipe), "-o"]
    running = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not (out / "scores" / "00000.parquet").exists():
        time.sleep(0.005)
    running.kill()
    assert running.wait() == -signal.SIGKILL, "it finished before it could be killed"
    for path in (out / "scores").glob("*.parquet"):
        assert pq.read_table(path).num_rows == 100
    assert not (out / "kept_uids.npy").exists()
    for folder in (out, whole):
        assert subprocess.run([*command, str(folder)], capture_output=True, check=False).returncode == 0
    assert tree(out) == tree(whole)
