from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from danqing.engine.core.device import Device, open_device
from danqing.engine.recipe.reading import Recipe, load_recipe


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Models are built once per test run, unless the environment already names a cache."""
    os.environ.setdefault("DANQING_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
    with open_device() as opened:
        yield opened


def picture(seed: int, size: tuple[int, int] = (160, 120), form: str = "JPEG") -> bytes:
    """A sharp, colourful picture that passes every visual criterion; another one for every seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.NEAREST).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def make_shard(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tar from {member name: content}; str and dict content is encoded."""

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


WITHOUT_MODELS = """
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
    """A recipe without neural networks: quick, and all of the pipeline but their stages."""
    path = tmp_path / "plain.yaml"
    path.write_text(WITHOUT_MODELS)
    return load_recipe(path)
