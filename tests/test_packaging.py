"""The wheel: one top-level package, all data files, no benchmarks; the folder links survive every kind of build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine", "kernels", "profiling", "trt_models")
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def build(source: Path, kind: str, output: Path) -> Path:
    """Runs the build backend as pip does, in the folder of the sources."""
    output.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, kind, str(output)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return output / done.stdout.splitlines()[-1]


def modules(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, since a build leaves files in its source folder."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("danqing", *FOLDERS):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    return build(checkout, "build_wheel", checkout / "dist")


def test_the_wheel_holds_one_package_with_all_its_data_and_no_benchmarks(checkout: Path, wheel: Path) -> None:
    held = modules(wheel)
    assert {name.partition("/")[0] for name in held} == {"danqing"}
    files = {path.relative_to(checkout) for name in FOLDERS for path in (checkout / name).rglob("*") if path.is_file()}
    shipped = {f"danqing/{path}" for path in files if path.parts[:2] not in NOT_SHIPPED}
    assert held == shipped | {"danqing/__init__.py", "danqing/api.py", "danqing/py.typed"}


NOT_SHIPPED = {("profiling", "bench"), ("profiling", "monitoring")}


def test_a_source_distribution_makes_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(checkout, "build_sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("danqing_engine-*")
    assert modules(build(source, "build_wheel", tmp_path / "dist")) == modules(wheel)


def test_the_wheel_leaves_other_peoples_packages_alone(wheel: Path, tmp_path: Path) -> None:
    for name in ("kernels", "profiling"):  # names on package indexes, or of Python's own (3.15)
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("owner = 'other'\n")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = """
import danqing.kernels, danqing.profiling, kernels, profiling
from danqing.engine.recipe.reading import builtin_names
print(danqing.__file__, danqing.kernels.__file__, kernels.owner, profiling.owner, *builtin_names())
"""
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    found = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=240
    )
    package = tmp_path / "danqing"
    recipes = ["danqing", "danqing-plus", "embedded"]
    expected = [f"{package}/__init__.py", f"{package}/kernels/__init__.py", "other", "other", *recipes]
    assert found.stdout.split() == expected


def test_the_folders_are_links_that_hold_anywhere() -> None:
    assert {name: str((ROOT / "danqing" / name).readlink()) for name in FOLDERS} == {n: f"../{n}" for n in FOLDERS}
