"""The examples of docs/extending.md, extracted and run."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from danqing.engine.cli.main import main
from danqing.engine.core.registry import Registry
from danqing.engine.sources import SOURCES
from danqing.engine.stages import STAGES
from tests.conftest import picture

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CAPTIONS = [
    "公园的草地上有一只可爱的小猫在晒太阳",
    "快来！快来！便宜卖！手机壳包邮",
    "二零二六年 2026 11 28 1234567 89",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with pairs/ in it."""
    (tmp_path / "pairs").mkdir()
    for number, caption in enumerate(CAPTIONS):
        (tmp_path / "pairs" / f"{number}.jpg").write_bytes(picture(number))
        (tmp_path / "pairs" / f"{number}.txt").write_text(caption, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def run(section: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes the files of a section and runs its commands; the page's first file, a recipe, is always there."""
    text = next(part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE) if part.startswith(f"{section}\n"))
    blocks = BLOCK.findall(text)
    for _, name, content in [BLOCK.findall(PAGE)[0], *blocks]:
        if name:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")
    for path in folder.glob("*/pyproject.toml"):
        install(path.parent, monkeypatch)
    for command in [line[2:] for kind, _, content in blocks if kind == "console" for line in content.splitlines()]:
        if command.startswith("danqing "):
            assert main(shlex.split(command)[1:]) == 0, command
        else:
            subprocess.run(command, shell=True, check=True, timeout=240)


def install(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a package and the metadata that pip would write on the path, for this test."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = package / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    monkeypatch.syspath_prepend(package)
    for registry in (STAGES, SOURCES):
        search_again(registry, monkeypatch)


def search_again(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.invalidate_caches()
    monkeypatch.setattr(registry, "_entries", None)
    monkeypatch.setattr(registry, "_parts", dict(registry._parts))


def verdicts(folder: Path) -> list[str | None]:
    return pq.read_table(folder / "verdicts" / "00000.parquet")["dropped_by"].to_pylist()


def test_a_criterion(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("A criterion", folder, monkeypatch)
    assert verdicts(folder / "out-digits") == [None, None, "few digits"]


def test_a_stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("A stage", folder, monkeypatch)
    scores = pq.read_table(folder / "out-calm" / "scores" / "00000.parquet")
    assert scores["exclamations"].to_pylist() == [0, 3, 0]
    assert verdicts(folder / "out-calm") == [None, "exclamations", None]


def test_a_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("A source", folder, monkeypatch)
    keys = pq.read_table(folder / "out-zip" / "scores" / "00000.parquet")["key"].to_pylist()
    assert keys == ["pairs/0", "pairs/1", "pairs/2"]


def test_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("A model", folder, monkeypatch)
    shares = pq.read_table(folder / "out-light" / "scores" / "00000.parquet")["unsafe_image"].to_pylist()
    assert all(0.4 < share < 0.6 for share in shares)
