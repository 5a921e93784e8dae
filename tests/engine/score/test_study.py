"""Columns for study: JPEG quality, animation, and fingerprints."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.phases import score_inputs
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from danqing.engine.stages.base import Context
from danqing.engine.stages.fingerprint import HASHED, PerceptualHash
from danqing.engine.stages.header import JPEG_TABLES, Header
from danqing.engine.stages.resize import open_resizer
from danqing.trt_models.model_set import ModelSet
from tests.conftest import picture

PHOTOGRAPHS = [
    path.read_bytes()
    for path in sorted((Path(str(resources.files("danqing.engine"))) / "demo" / "photos").glob("*.jpg"))
]


def headers(device: Device, images: list[bytes]) -> Batch:
    batch = Batch({"row": np.arange(len(images)), "image": images, "error": [None] * len(images)})
    Header(Context(device, ModelSet({}), frozenset()))(batch)
    return batch


def saved(form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(1))).save(buffer, form, **options)
    return buffer.getvalue()


def test_the_quality_of_jpeg_files_is_exact(device: Device) -> None:
    assert len({table.tobytes() for table in JPEG_TABLES}) == 100
    images = [saved("JPEG", quality=quality) for quality in range(1, 101)]
    assert headers(device, images)["jpeg_quality"].tolist() == list(range(1, 101))
    assert headers(device, [saved("PNG"), b"junk"])["jpeg_quality"].tolist() == [100, 0]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "AVIF"])
def test_animations_are_detected(device: Device, form: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    moving = io.BytesIO()
    frames[0].save(moving, form, save_all=True, append_images=frames[1:])
    data = moving.getvalue()
    batch = headers(device, [saved(form), data, data[: len(data) * 3 // 4]])
    assert batch["animated"].tolist()[:2] == [False, True]
    assert batch["error"][:2] == [None, None]


def test_pages_are_not_an_animation(device: Device) -> None:
    pages = io.BytesIO()
    Image.new("L", (40, 40)).save(pages, "TIFF", save_all=True, append_images=[Image.new("L", (40, 40))])
    assert headers(device, [pages.getvalue()])["animated"].tolist() == [False]


def hashes(device: Device, pictures: list[np.ndarray]) -> np.ndarray:
    (small,) = open_resizer([HASHED], device)(pictures)
    batch = Batch({"row": np.arange(len(pictures)), "hash_input": small})
    PerceptualHash(Context(device, ModelSet({}), frozenset()))(batch)
    found: np.ndarray = batch["perceptual_hash"]
    return found


def distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.bitwise_count(left ^ right)


def test_perceptual_hashes_equal_imagehash(device: Device) -> None:
    """imagehash converts to grey before scaling, and we after it: a value near the median can give another bit."""
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in PHOTOGRAPHS]
    ours = hashes(device, [np.asarray(p) for p in pictures])
    theirs = np.array([int(str(imagehash.phash(p)), 16) for p in pictures], np.uint64)
    found = distances(ours, theirs)
    assert found.max() <= 2 and found.mean() < 0.2, found


def test_copies_have_near_hashes_and_other_pictures_do_not(device: Device) -> None:
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in PHOTOGRAPHS]
    small = [p.resize((p.width // 2, p.height // 2), Image.Resampling.LANCZOS) for p in pictures]
    ours, copies = (hashes(device, [np.asarray(p) for p in some]) for some in (pictures, small))
    others = distances(ours[:, None], ours[None])[~np.eye(len(ours), dtype=bool)]
    assert distances(ours, copies).max() <= 4 < 10 <= others.min()


def test_study_columns_are_scored_when_asked_for(make_shard: Any, plain_recipe: Recipe, tmp_path: Path) -> None:
    text = "公园的草地上有一只可爱的小猫在晒太阳"
    shard = str(make_shard({"a.jpg": picture(1), "a.txt": text, "b.jpg": b"<html>", "b.txt": text, "c.txt": text}))
    recipe = replace(plain_recipe, also=("sha256", "perceptual_hash"))
    run, _ = score_inputs([shard], tmp_path / "out", recipe, Settings())
    first, second, third = pq.read_table(run.scores_path(0)).to_pylist()
    assert first["sha256"] == hashlib.sha256(picture(1)).hexdigest() and first["perceptual_hash"] > 0
    assert first["jpeg_quality"] == 75 and first["animated"] is False
    assert second["sha256"] == hashlib.sha256(b"<html>").hexdigest() and second["perceptual_hash"] is None
    assert third["sha256"] == hashlib.sha256(b"").hexdigest()
    run, _ = score_inputs([shard], tmp_path / "plain", plain_recipe, Settings())
    assert not {"sha256", "perceptual_hash"} & set(pq.read_schema(run.scores_path(0)).names)
