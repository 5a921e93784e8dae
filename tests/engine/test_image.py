"""The image and what watches it: files that only a container would read, held against what they name."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from engine.metrics import Stages
from profiling.spans import Span, Spans

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "profiling" / "monitoring"
CONTAINER: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())


def pinned() -> dict[str, tuple[str, int]]:
    """Package → its version, and how many hashes it may have."""
    text = (ROOT / "requirements" / "cuda13.txt").read_text().replace("\\\n", " ")
    found = re.findall(r"^([a-z0-9-]+)==(\S+) (.*)$", text, re.M)
    assert len(found) == len(text.strip().splitlines())
    return {
        name: (version, len(re.findall("--hash=sha256:[0-9a-f]{64}(?: |$)", hashes))) for name, version, hashes in found
    }


def test_the_image_has_everything_the_engine_asks_for_pinned_with_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["cuda"]]
    there = pinned()
    assert all(hashes for _, hashes in there.values())
    assert "onnxruntime" not in there and "onnxruntime-gpu" in there  # one of them only: they are the same module
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name).replace("onnxruntime", "onnxruntime-gpu")
        assert name in there, f"{name}: make requirements/cuda13.txt anew"
        assert requirement.specifier.contains(there[name][0]), (
            f"{name} {there[name][0]}, but {requirement} is asked for"
        )


def test_what_is_copied_into_the_image_is_there() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [words[1:-1] for line in lines if (words := line.split()) and words[0] == "COPY" and "--from" not in line]
    names = {name for names in copied for name in names}
    assert {"engine", "kernels", "trt_models", "profiling", "pyproject.toml", "requirements/cuda13.txt"} <= names
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert names == allowed and all((ROOT / name).exists() for name in names)


def test_files_that_containers_mount_are_there() -> None:
    for service in CONTAINER["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or (ROOT / source).is_file()
            assert source[0] in "./$" or source in CONTAINER["volumes"]


def test_prometheus_asks_where_the_engine_serves() -> None:
    jobs = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    (target,) = jobs[0]["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in CONTAINER["services"]["engine"]["networks"]["default"]["aliases"]
    assert f"EXPOSE {port}" in (ROOT / "Dockerfile").read_text()
    assert f"--metrics-port {port}" in (ROOT / "compose.yaml").read_text()


def test_the_dashboard_asks_for_figures_that_are_served() -> None:
    spans = Spans()
    spans["decode"] = Span(waiting=lambda: 0)
    spans["decode"].dropped["flat"] = 1
    served: dict[str, set[str]] = {"process_resident_memory_bytes": set(), "process_cpu_seconds_total": set()}
    for metric in Stages(spans).collect():
        for sample in metric.samples:
            served.setdefault(sample.name, set()).update(sample.labels)
    board = json.loads((MONITORING / "dashboard.json").read_text())
    source = yaml.safe_load((MONITORING / "grafana.yaml").read_text())["datasources"][0]["uid"]
    asked = set()
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == source
        for target in panel["targets"]:
            (name,) = re.findall(r"\b(?:danqing|process)_\w+", target["expr"])
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= served[name]
            asked.add(name)
    assert {name for name in served if name.startswith("danqing")} - asked == {"danqing_passed_total"}
