"""The benchmark for GPUs, on a CPU at a tiny size: every step runs, gives correct figures and keeps its time limit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from danqing.engine.core.errors import DanqingError
from danqing.profiling.bench.gpu import __main__ as gpu
from danqing.profiling.bench.gpu import columns
from danqing.profiling.bench.gpu import tests as gpu_tests
from danqing.profiling.bench.gpu.__main__ import figures
from danqing.profiling.bench.gpu.material import SMALL, Figure, Job, export_models


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("gpu")
    made = Job("cpu", folder, folder, SMALL, None, rows=2_000, pairs=8)
    export_models(made)
    return made


def measured(step: str, job: Job) -> dict[str, float | str]:
    found = list(figures(step, job))
    assert all(figure.text for figure in found)
    return {figure.name: figure.value for figure in found}


def rates(found: dict[str, float | str]) -> list[float]:
    return [value for value in found.values() if isinstance(value, float)]


def test_kernels_agree_with_themselves(job: Job) -> None:
    found = measured("kernels", job)
    assert [value for name, value in found.items() if "differs" in name or "differ from" in name] == [0.0] * 4
    assert found["pixel statistics, largest relative difference"] == 0


def test_every_search_finds_the_groups(job: Job) -> None:
    found = measured("neighbours", job)
    for dimension in (64, 768):
        groups = found[f"2,000 × {dimension}, groups found"]
        assert 1_400 < float(groups) < 1_500  # 30 % of 2,000 rows in groups of 26 rows on average
    differing = {name: value for name, value in found.items() if "another group" in name}
    assert len(differing) == 6 and set(differing.values()) == {0}
    assert min(rates(found)) > 0


def test_few_of_many_rows_are_compared(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "ALL_ROWS", 1_000)
    monkeypatch.setattr(columns, "NEW_ROWS", 20)
    found = measured("neighbours", job)
    assert float(found["2,000 × 768, groups found"]) > 1_500 and "2,000 × 768, faiss: rows in another group" in found


@pytest.mark.parametrize("step", ["pictures", "tables", "train", "workers"])
def test_a_step_gives_rates(step: str, job: Job) -> None:
    assert min(rates(measured(step, job))) > 0


def test_models_of_texts_agree_with_themselves(job: Job) -> None:
    found = measured("perplexity", job)
    assert found["onnxruntime fp32, largest difference of a log-perplexity to the CPU's"] == 0
    found = measured("evaluate", job)
    for kind in ("images", "texts"):
        assert found[f"{kind}, smallest cosine to the CPU's"] == pytest.approx(1)


def test_clusters_are_the_same_twice(job: Job) -> None:
    assert measured("balance", job)["rows in another cluster the second time"] == 0


def test_failed_tests_and_reasons_of_skipped_ones_are_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = ("pass", "assert 1 == 2", "pytest.skip('no GPU')", "pytest.skip('no GPU')")
    tests = [f"@pytest.mark.gpu\ndef test_{number}():\n    {body}" for number, body in enumerate(bodies)]
    (tmp_path / "test_it.py").write_text("\n".join(["import pytest", *tests]))
    monkeypatch.setattr(gpu_tests, "FOLDER", str(tmp_path))
    found = {}
    with pytest.raises(DanqingError, match="1 tests failed"):
        for figure in figures("tests", Job("cpu", tmp_path, tmp_path, SMALL, None, rows=1, pairs=1)):
            found[figure.name] = figure.text
    assert found.pop("tests passed") == "1" and found.pop("tests skipped: no GPU") == "2"
    [(name, message)] = found.items()
    assert name.endswith("test_it.test_1") and message.startswith("failure: assert 1 == 2")


def test_networks_are_held_against_float32(job: Job) -> None:
    found = measured("networks", job)
    assert found["onnxruntime fp32, smallest cosine to fp32"] == pytest.approx(1)
    assert 0.98 < float(found["onnxruntime int8, smallest cosine to fp32"]) < 1
    assert float(found["torch bf16, smallest cosine to fp32"]) > 0.999
    assert str(found["tensorrt fp32"]).startswith("none: --runtime tensorrt: for cpu")
    patches, layers = 2 * 49 * 3 * 32**2 * 128, 2 * (2 * 50 * 12 * 128**2 + 4 * 50**2 * 128)
    assert float(found["small, arithmetic of a picture"]) * 1e9 == patches + layers + 2 * 128 * 64


def test_shards_are_scored_end_to_end(job: Job) -> None:
    found = measured("end-to-end", job)
    assert float(found[f"{SMALL}, onnxruntime fp32"]) > 0
    assert "image embedding, stage alone" in found


def test_a_step_without_time_costs_only_its_own_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "danqing.profiling.bench.gpu", "tables", "--device", "cpu", "--minutes", "0.01"]
    done = subprocess.run([*command, "--output", str(tmp_path)], capture_output=True, text=True, timeout=240)
    error = json.loads((tmp_path / "tables.json").read_text())["error"].partition(":")[0]
    assert re.fullmatch("stopped after . s, its limit|no time left", error)  # the second on a loaded machine
    assert done.returncode == 1 and error in done.stdout and error in (tmp_path / "results.md").read_text()


STEP = """
import pathlib, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
pathlib.Path("child").write_text(str(child.pid))
print("so far", flush=True)
"""


@pytest.mark.parametrize(
    "ending, error", [("time.sleep(600)", "stopped after 15 s, its limit"), ("sys.exit(3)", "ended with 3")]
)
def test_a_step_that_fails_or_hangs_keeps_its_figures(
    ending: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has started ends with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "_command", lambda name, scratch: [sys.executable, "-c", STEP + ending])
    Path("step.json").write_text(json.dumps(gpu._result("step", 1.0, [Figure("a | b", 2.0, "1/s")])))
    found = gpu._run_step("step", tmp_path, tmp_path, 15, {**os.environ})
    assert found["error"] == f"{error}:\nso far" and found["figures"][0]["value"] == 2.0
    markdown = gpu._to_markdown([found])
    assert "| a \\| b | 2 1/s |" in markdown and found["error"] in markdown
    deadline, child = time.monotonic() + 30, int(Path("child").read_text())
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_unknown_step_is_named() -> None:
    command = [sys.executable, "-m", "danqing.profiling.bench.gpu", "network"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and "there are tests, pictures" in done.stderr
