"""Fixtures that several folders of tests use."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from danqing.engine.core.device import Device, open_device
from danqing.engine.recipe.reading import Recipe, load_recipe

HEEDS_CTRL_C = ["env", "--default-signal=INT"]
"""Starts a command that heeds SIGINT. Tests in the background ignore it, and a child process would inherit that."""


LONG_FILES = [
    "kernels/test_portable.py",
    "trt_models/test_engines.py",
    "engine/score/test_cluster.py",
    "engine/test_kills.py",
    "engine/report/test_topics.py",
    "engine/test_demo.py",
    "engine/test_cli.py",
    "engine/score/test_simulated.py",
    "engine/score/test_workers.py",
    "engine/core/test_memory.py",
    "engine/stages/test_patterns.py",
    "engine/train/test_train.py",
    "kernels/test_compiled.py",
    "profiling/test_gpu_bench.py",
]
"""Files that take longest. The first two hardly need kernels for CPUs, which one process compiles while others wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first: if one of them came last, one process would run it while the others were idle."""
    folder = Path(__file__).parent
    rank = {folder / name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sets a cache for the test run, so that models and kernels are built once, unless the environment names one."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all worker processes
    os.environ.setdefault("DANQING_CACHE", str(folder / "cache"))


@pytest.fixture(autouse=True)
def pixel_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores Pillow's limit of pixels, which `engine.stages.opening` sets."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Starts a process, and kills it at the end of the block if it is still running."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
    """The CPU."""
    with open_device() as opened:
        yield opened


def picture(seed: int, size: tuple[int, int] = (160, 120), form: str = "JPEG") -> bytes:
    """Makes a sharp, colourful picture that passes every visual criterion, a different one for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.NEAREST).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def make_shard(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tar of {member name: content}; str content is encoded as UTF-8, dict content as JSON."""

    def make(members: dict[str, bytes | str | dict[str, Any]], name: str = "00000.tar") -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w") as tar:
            for member, content in members.items():
                if isinstance(content, dict):
                    content = json.dumps(content)
                data = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return make


RECIPE_WITHOUT_NETWORKS = """
recipe: plain
models: {text_safety: jionlp-pornography, caption_safety: jionlp-advertising}
criteria:
  unsafe_text: {max: 0}
  words: {min: 5, max: 60}
  downloaded: {column: image_bytes, min: 1}
  nouns: {min: 1}
  readable: {min: 1}
  aspect_ratio: {min: 0.5, max: 2}
  decodable: {min: 1}
  laplacian_variance: {min: 100}
"""


@pytest.fixture
def plain_recipe(tmp_path: Path) -> Recipe:
    """A recipe without networks, which is fast and runs all other stages."""
    path = tmp_path / "plain.yaml"
    path.write_text(RECIPE_WITHOUT_NETWORKS)
    return load_recipe(path)
