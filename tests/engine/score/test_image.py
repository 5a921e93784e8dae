"""Files of the image and of monitoring that no other test reads, compared with the things that they name."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from danqing import __version__
from danqing.engine.core.nvml import GpuReading
from danqing.engine.core.spans import Span, Spans
from danqing.engine.score.announce import announce_worker
from danqing.engine.score.gpu_metrics import GpuGauges
from danqing.engine.score.metrics import RefusedEngines, StageMetrics
from danqing.trt_models.model_set import ModelSet

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "profiling" / "monitoring"
CONTAINER: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())


DOCKERFILE = (ROOT / "Dockerfile").read_text()


def pinned(name: str = "cuda13.txt") -> dict[str, tuple[str, int]]:
    """Package → its version and number of hashes."""
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    found = re.findall(r"^([a-z0-9-]+)==(\S+) (.*)$", text, re.M)
    assert len(found) == len(text.strip().splitlines())
    return {
        name: (version, len(re.findall("--hash=sha256:[0-9a-f]{64}(?: |$)", hashes))) for name, version, hashes in found
    }


def test_all_dependencies_are_pinned_with_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["cuda"]]
    there = pinned()
    assert all(hashes for _, hashes in there.values())
    assert "onnxruntime" not in there and "onnxruntime-gpu" in there  # both install the same module
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name).replace("onnxruntime", "onnxruntime-gpu")
        assert name in there, f"{name}: run requirements/pin.sh"
        assert requirement.specifier.contains(there[name][0]), (
            f"{name} {there[name][0]}, but {requirement} is asked for"
        )


def test_adding_torch_changes_no_pinned_version() -> None:
    there, added = pinned(), pinned("torch.txt")
    assert "torch" in added and "torch" not in there
    assert all(hashes for _, hashes in added.values())
    differ = {name for name in there.keys() & added.keys() if there[name][0] != added[name][0]}
    assert not differ, "run requirements/pin.sh"


def test_the_image_has_labels() -> None:
    assert f"ARG VERSION={__version__}\n" in DOCKERFILE
    labels = set(re.findall(r"org\.opencontainers\.image\.([\w.]+)=", DOCKERFILE))
    assert labels >= {"title", "description", "licenses", "version", "revision"}


def test_files_copied_into_the_image_exist() -> None:
    lines = DOCKERFILE.splitlines()
    copied = [words[1:-1] for line in lines if (words := line.split()) and words[0] == "COPY" and "--from" not in line]
    names = {name for names in copied for name in names}
    assert {"engine", "kernels", "trt_models", "profiling", "pyproject.toml", "requirements/cuda13.txt"} <= names
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert names == allowed and all((ROOT / name).exists() for name in names)


def test_files_mounted_into_containers_exist() -> None:
    for service in CONTAINER["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or (ROOT / source).is_file()
            assert source[0] in "./$" or source in CONTAINER["volumes"]


def test_prometheus_reads_the_files_of_the_workers(tmp_path: Path) -> None:
    (job,) = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    (pattern,) = job["file_sd_configs"][0]["files"]
    assert "DANQING_CACHE=/cache" in DOCKERFILE and "cache:/cache" in CONTAINER["services"]["engine"]["volumes"]
    assert "cache:/cache:ro" in CONTAINER["services"]["prometheus"]["volumes"]
    with announce_worker(tmp_path / "metrics", "0.0.0.0", 9100, "cuda:0"):
        (file,) = tmp_path.rglob("*.json")
    assert Path("/cache", file.relative_to(tmp_path)).match(pattern)


def test_the_dashboard_queries_metrics_that_are_served() -> None:
    spans = Spans()
    spans["decode"] = Span(waiting=lambda: 0)
    spans["decode"].dropped["flat"] = 1
    of_processes = ("process_resident_memory_bytes", "process_cpu_seconds_total", "up")
    served: dict[str, set[str]] = {name: set() for name in of_processes}
    models = ModelSet({})
    models.running["image_embedding"] = "0" * 64
    gpu = GpuGauges(lambda: GpuReading(*[0.5] * 7), "0000:4E:00.0")
    for metric in (*StageMetrics(spans).collect(), *gpu.collect(), *RefusedEngines(models).collect()):
        for sample in metric.samples:
            served.setdefault(sample.name, set()).update(sample.labels)
    of_prometheus = {"instance", "job"}
    board = json.loads((MONITORING / "dashboard.json").read_text())
    source = yaml.safe_load((MONITORING / "grafana.yaml").read_text())["datasources"][0]["uid"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    asked = set()
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == source
        for target in panel["targets"]:
            (name,) = re.findall(r"\b(?:(?:danqing|process)_\w+|up\b)", target["expr"])
            named = re.findall(r"{{(\w+)}}", target["legendFormat"])
            assert set(named) <= served[name] | of_prometheus
            asked.add(name)
    assert {name for name in served if name.startswith("danqing")} - asked == {"danqing_passed_total"}
