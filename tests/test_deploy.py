"""The launchers in deploy/: what they run is a command of the engine, and the manifests agree with themselves."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from danqing.engine.cli.commands import app
from danqing.engine.run.part import TaskPart

FOLDER = Path(__file__).parents[1] / "deploy"
STUB = '#!/bin/sh\necho "$0" "$@" >> "$SAID"\necho 7\n'


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Runs a script with stand-ins for Slurm's commands; returns what they were called with, without their options."""
    for name in ("srun", "sbatch", "scontrol", "getent"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)

    def start(script: str, *arguments: str, **variables: str) -> list[list[str]]:
        said = tmp_path / "said"
        said.unlink(missing_ok=True)
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(said)} | variables
        subprocess.run(
            ["bash", FOLDER / "slurm" / script, *arguments], env=environment, check=True, capture_output=True
        )
        calls = [shlex.split(line) for line in said.read_text().splitlines()]
        return [[Path(call[0]).name, *call[1:]] for call in calls]

    return start


def parsed(words: list[str]) -> dict[str, Any]:
    """Parses a command line of `danqing`; an option that does not exist raises."""
    assert words[0] == "danqing"
    return app.parse_args(words[1:])[1].arguments


def test_an_array_divides_the_shards_among_its_tasks(run: Any) -> None:
    task = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "15"}
    ((name, *command),) = run("score.sbatch", "a.tar", "-o", "out", "--recipe", "danqing", **task)
    assert name == "srun" and parsed(command)["part"] == "3/16" and parsed(command)["inputs"] == ["a.tar"]
    ((_, *command),) = run("write.sbatch", "out", PARTS="64", **task)
    assert parsed(command)["part"] == "3/64"
    ((_, *command),) = run("decide.sbatch", "out")
    assert parsed(command)["run"] == Path("out")
    ((_, *command),) = run("neighbours.sbatch", "out", **task)
    assert command == ["danqing", "decide", "out", "--neighbour-task", "3", "--log-format", "json"]
    parsed(command)


def test_the_phases_of_a_run_follow_one_another(run: Any) -> None:
    score, decide, write = run("curate.sh", "4", "out", "a.tar", "--recipe", "danqing")
    assert "--array=0-3" in score and score[-5:] == ["a.tar", "--recipe", "danqing", "-o", "out"]
    assert "--dependency=afterok:7" in decide and decide[-1] == "out"
    assert "--dependency=afterok:7" in write and "--array=0-3" in write


def test_a_job_has_a_ray_cluster_of_its_nodes(run: Any) -> None:
    variables = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    command = run("ray.sbatch", "a.tar", "-o", "out", **variables)[-1]
    assert command[:4] == ["srun", "--no-kill", "ray", "symmetric-run"]
    assert parsed(command[command.index("--") + 1 :])["several"].ray == "auto"


def commands_of(run: Any, words: list[str]) -> list[list[str]]:
    """The commands of the engine that a command line starts, itself or by scripts that it runs or submits."""
    if "danqing" in words:
        return [words[words.index("danqing") :]]
    script = next((place for place, word in enumerate(words) if word.endswith((".sh", ".sbatch"))), None)
    if script is None:
        return []
    variables = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "15", "SLURM_JOB_NODELIST": "n[1-2]"}
    calls = run(Path(words[script]).name, *words[script + 1 :], SLURM_JOB_NUM_NODES="2", **variables)
    return [command for call in calls for command in commands_of(run, call)]


@pytest.mark.parametrize("path", sorted((FOLDER / "slurm").iterdir()), ids=lambda path: path.name)
def test_the_examples_of_a_script_are_commands_of_the_engine(run: Any, path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    examples = [line[4:] for line in lines if line.startswith("#   ") and "…" not in line]
    commands = [command for line in examples for command in commands_of(run, shlex.split(line, comments=True))]
    assert commands
    for command in commands:
        parsed(command)


def containers(node: Any) -> list[dict[str, Any]]:
    """The pods of a manifest, at any depth."""
    if isinstance(node, list):
        return [found for item in node for found in containers(item)]
    if not isinstance(node, dict):
        return []
    return [*([node] if "containers" in node else []), *(found for item in node.values() for found in containers(item))]


@pytest.mark.parametrize("path", sorted((FOLDER / "kubernetes").iterdir()), ids=lambda path: path.name)
def test_a_manifest_agrees_with_itself(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    pods = containers(manifest)
    for pod in pods:
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert all({mount["name"] for mount in one["volumeMounts"]} == volumes for one in pod["containers"])
    if manifest["kind"] == "RayJob":
        arguments = parsed(shlex.split(manifest["spec"]["entrypoint"]))
        assert arguments["several"].ray == "auto" and arguments["scoring"].machine.device == "cuda"
        groups = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert len(pods) == 2 and all(one["minReplicas"] <= one["replicas"] <= one["maxReplicas"] for one in groups)
        return
    assert manifest["apiVersion"] == "batch/v1" and manifest["kind"] == "Job"
    spec, (container,) = manifest["spec"], pods[0]["containers"]
    if container.get("command") != ["sh", "-c"]:
        parsed(["danqing", *container["args"]])
        return
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    line = container["args"][0].removeprefix("exec ").replace("$JOB_COMPLETION_INDEX", str(spec["completions"] - 1))
    part = TaskPart.parse(parsed(shlex.split(line))["part"])
    assert part == TaskPart(spec["completions"] - 1, spec["completions"])
