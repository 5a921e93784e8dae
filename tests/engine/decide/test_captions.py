"""Captions that are equal or similar: groups, verdicts, other runs, merging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from danqing.engine.cli.main import main
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.decide.dedup.captions import MIN_RECALL, SimilarTexts, bands_for, nearest_texts
from danqing.engine.decide.dedup.fingerprints import group_equal
from danqing.engine.decide.merging import merge
from danqing.engine.decide.reference import with_references
from danqing.engine.decide.verdicts import decide
from danqing.engine.phases import curate
from danqing.engine.recipe.criteria import Exclusion, Redundancy
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.stages.columns import known_columns
from tests.conftest import picture
from tests.engine.decide.runs import make_run, on_circle, verdicts_of
from tests.kernels.text.test_hashes import jaccard_distance

EQUAL, SIMILAR = "{column: caption_hash, within: 0}", "{column: text_clean, within: 0.3}"
RECIPE = """
recipe: captions
models: {image_embedding: efficientnet-lite0-conse}
criteria:
"""
CAT, CATS, DOG = "一只橘猫坐在窗台上看着外面的小鸟飞过", "一只橘猫坐在窗台上看着外面的小鸟飞来", "公园的草地上有一只小狗在追飞盘"


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    """Reads a recipe of these criteria, name → keys."""

    def read(**criteria: str) -> Recipe:
        path = tmp_path / "captions.yaml"
        path.write_text(RECIPE + "".join(f"  {name}: {keys}\n" for name, keys in criteria.items()))
        return load_recipe(path, columns=known_columns())

    return read


def similar(device: Device, texts: Sequence[str], within: float) -> SimilarTexts:
    encoded = pa.array(texts, pa.large_string()).dictionary_encode()
    return SimilarTexts(device, encoded.indices.to_numpy(), encoded.dictionary, within)


def run_of(folder: Path, recipe: Recipe, texts: Sequence[str], **scores: Any) -> Run:
    """A run whose pictures are all different; equal texts have equal hashes."""
    degrees = np.random.default_rng(len(texts)).permutation(360)[: len(texts)] if "degrees" not in scores else None
    features = on_circle(*(scores.pop("degrees") if degrees is None else degrees))
    hashes = ["" if not text else f"{abs(hash(text)):032x}" for text in texts]
    given = {"text_clean": texts, "caption_hash": hashes} | scores
    return make_run(folder, recipe, features, given, first_uid=scores.pop("first_uid", 1))


def changed(rng: np.random.Generator, text: str, characters: int) -> str:
    """The text with some characters replaced by others of their own."""
    places = set(rng.choice(len(text), characters, replace=False).tolist())
    return "".join(chr(rng.integers(0x4E00, 0x9FA5)) if i in places else c for i, c in enumerate(text))
