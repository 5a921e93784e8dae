"""The benchmark for GPUs, on a CPU at a tiny size: every step runs, gives correct figures and keeps its time limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from danqing.profiling.bench.gpu import columns
from danqing.profiling.bench.gpu.__main__ import figures
from danqing.profiling.bench.gpu.material import SMALL, Job, export_tower


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("gpu")
    made = Job("cpu", folder, folder, SMALL, None, rows=2_000, pairs=8)
    export_tower(made)
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


def test_neighbours_are_found(job: Job) -> None:
    found = measured("neighbours", job)
    assert 1_400 < float(found["groups found"]) < 1_500  # 30 % of 2,000 rows in groups of 26 rows on average
    differing = {name: value for name, value in found.items() if "another group" in name}
    assert len(differing) == 3 and set(differing.values()) == {0}
    assert min(rates(found)) > 0


def test_few_of_many_rows_are_compared(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "ALL_ROWS", 1_000)
    monkeypatch.setattr(columns, "NEW_ROWS", 20)
    found = measured("neighbours", job)
    assert float(found["groups found"]) > 1_500 and "rows in another group than by tiles, faiss" in found


@pytest.mark.parametrize("step", ["pictures", "tables", "train"])
def test_a_step_gives_rates(step: str, job: Job) -> None:
    assert min(rates(measured(step, job))) > 0


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
    assert done.returncode == 1 and "stopped after" in done.stdout
    assert "stopped after" in json.loads((tmp_path / "tables.json").read_text())["error"]


def test_an_unknown_step_is_named() -> None:
    command = [sys.executable, "-m", "danqing.profiling.bench.gpu", "network"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and "there are kernels, neighbours" in done.stderr
